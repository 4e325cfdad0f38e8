"""Flan-MoE encoder-decoders in the Hugging Face ecosystem.

Names are imported when they are first used, so that importing this package (as the command line
does for ``--help``) does not import transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from flan_moe.model.__about__ import __version__

if TYPE_CHECKING:
    from flan_moe.model.accounting import (
        FlopsPerToken,
        ParameterCount,
        count_parameters,
        flops_per_token,
    )
    from flan_moe.model.config import FlanMoEConfig
    from flan_moe.model.memory import TrainingMemory, cache_bytes, training_memory, weight_bytes
    from flan_moe.model.modeling import FlanMoEForConditionalGeneration
    from flan_moe.model.output import EncoderOutput, FlanMoEOutput
    from flan_moe.model.presets import PRESETS, flan_moe_config
    from flan_moe.model.register import register_auto_classes
    from flan_moe.model.segments import TokenLayout
    from flan_moe.model.twin import dense_twin

__all__ = [
    "PRESETS",
    "EncoderOutput",
    "FlanMoEConfig",
    "FlanMoEForConditionalGeneration",
    "FlanMoEOutput",
    "FlopsPerToken",
    "ParameterCount",
    "TokenLayout",
    "TrainingMemory",
    "__version__",
    "cache_bytes",
    "count_parameters",
    "dense_twin",
    "flan_moe_config",
    "flops_per_token",
    "register_auto_classes",
    "training_memory",
    "weight_bytes",
]

_HOME = {
    "PRESETS": "presets",
    "EncoderOutput": "output",
    "FlanMoEConfig": "config",
    "FlanMoEForConditionalGeneration": "modeling",
    "FlanMoEOutput": "output",
    "FlopsPerToken": "accounting",
    "ParameterCount": "accounting",
    "TokenLayout": "segments",
    "TrainingMemory": "memory",
    "cache_bytes": "memory",
    "count_parameters": "accounting",
    "dense_twin": "twin",
    "flan_moe_config": "presets",
    "flops_per_token": "accounting",
    "register_auto_classes": "register",
    "training_memory": "memory",
    "weight_bytes": "memory",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
