"""The version of flan-moe-experts."""

__version__ = "0.1.0"
