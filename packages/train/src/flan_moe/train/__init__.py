"""Instruction tuning of Flan-MoE models with Composer."""

from flan_moe.train.__about__ import __version__

__all__ = ["__version__"]
