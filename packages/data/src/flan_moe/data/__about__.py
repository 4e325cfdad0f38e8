"""Version of flan-moe-data."""

__version__ = "0.1.0"
