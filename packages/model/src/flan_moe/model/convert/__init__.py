"""Checkpoints of other libraries, and sparse models made of dense ones.

Names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flan_moe.model.convert.conversion import Conversion, convert
    from flan_moe.model.convert.experts_of import UpcycleOptions
    from flan_moe.model.convert.output_change import OutputChange
    from flan_moe.model.convert.sparse_config import preset_routing, upcycled_config
    from flan_moe.model.convert.upcycling import Upcycling, upcycle, upcycle_model
    from flan_moe.model.convert.weights import flan_moe_names, switch_names, t5_names

__all__ = [
    "Conversion",
    "OutputChange",
    "UpcycleOptions",
    "Upcycling",
    "convert",
    "flan_moe_names",
    "preset_routing",
    "switch_names",
    "t5_names",
    "upcycle",
    "upcycle_model",
    "upcycled_config",
]

_HOME = {
    "Conversion": "conversion",
    "OutputChange": "output_change",
    "UpcycleOptions": "experts_of",
    "Upcycling": "upcycling",
    "convert": "conversion",
    "flan_moe_names": "weights",
    "preset_routing": "sparse_config",
    "switch_names": "weights",
    "t5_names": "weights",
    "upcycle": "upcycling",
    "upcycle_model": "upcycling",
    "upcycled_config": "sparse_config",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
