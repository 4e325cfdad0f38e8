"""Flan-MoE encoder-decoder models in the Hugging Face ecosystem."""

from flan_moe.model.__about__ import __version__

__all__ = ["__version__"]
