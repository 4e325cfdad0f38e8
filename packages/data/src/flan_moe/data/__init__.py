"""Flan instruction-tuning data: readers, mini-Flan, shards, weighted mixtures, packing."""

from flan_moe.data.__about__ import __version__

__all__ = ["__version__"]
