"""Expert feed-forward layers over a compressed-sparse-row routing, forward and backward."""

from flan_moe.experts.__about__ import __version__

__all__ = ["__version__"]
