"""Zero- and few-shot, direct and chain-of-thought evaluation of encoder-decoder and causal language models."""

from flan_moe.eval.__about__ import __version__

__all__ = ["__version__"]
