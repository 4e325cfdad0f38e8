"""The version of flan-moe-routing."""

__version__ = "0.1.0"
