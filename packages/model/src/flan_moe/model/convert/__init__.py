"""Checkpoints of other libraries, and sparse models made of dense ones.

Names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flan_moe.model.convert.conversion import (
        Conversion,
        convert,
        flan_moe_names,
        switch_names,
        t5_names,
    )

__all__ = ["Conversion", "convert", "flan_moe_names", "switch_names", "t5_names"]

_HOME = {
    "Conversion": "conversion",
    "convert": "conversion",
    "flan_moe_names": "conversion",
    "switch_names": "conversion",
    "t5_names": "conversion",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
