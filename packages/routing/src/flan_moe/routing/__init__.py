"""Routers for sparse mixture-of-experts layers: Switch, top-k, expert choice; capacity, balance and z losses."""

from flan_moe.routing.__about__ import __version__

__all__ = ["__version__"]
