"""The version of flan-moe-model."""

__version__ = "0.1.0"
