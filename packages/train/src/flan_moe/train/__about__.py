"""The version of flan-moe-train."""

__version__ = "0.1.0"
