"""Named configurations.

Sizes of the ``t5``, ``flan-ec``, ``flan-gs`` and ``flan-switch`` presets are those of the public
T5X and flaxformer configs (``experts_choose_*``, ``tokens_choose_*``, ``switch_base``) from which
the families of the Flan-MoE paper derive; dropout is the paper's for instruction tuning. Their
parameter totals are tested against the published ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from flan_moe.model.config import FlanMoEConfig

_FLAN = {"vocab_size": 32128, "d_kv": 64, "dropout_rate": 0.05, "expert_dropout_rate": 0.2}
_SMALL = {**_FLAN, "d_model": 512, "d_ff": 1024, "num_layers": 8, "num_heads": 6}
_BASE = {**_FLAN, "d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12}


# Decoders serve one token after the other, where the references serve all first choices before all
# second ones: in training, these let a full expert depend on tokens that come later.
_IN_DECODER = {"drop_order": "token"}


def _expert_choice(num_experts: int) -> dict[str, Any]:
    """Expert choice in the encoder, top-2 token choice in the decoder, every other layer."""
    return {
        "sparse_every": 2,
        "encoder_router": {"name": "expert_choice", "num_experts": num_experts},
        "decoder_router": {
            "name": "expert_choice_decoder",
            "num_experts": num_experts,
            **_IN_DECODER,
        },
    }


def _top_2_token_choice(num_experts: int) -> dict[str, Any]:
    """Top-2 in every fourth layer, batch-prioritised in the encoder only."""
    return {
        "sparse_every": 4,
        "encoder_router": {"name": "flaxformer_top2", "num_experts": num_experts},
        "decoder_router": {"name": "top_k", "num_experts": num_experts, **_IN_DECODER},
    }


def _switch_base(num_experts: int) -> dict[str, Any]:
    return {
        **_BASE,
        "d_ff": 3072,
        "activation": "relu",
        "tie_word_embeddings": True,
        "sparse_every": 2,
        "encoder_router": {"name": "switch", "num_experts": num_experts},
        "decoder_router": {"name": "switch", "num_experts": num_experts},
    }


def _top_2(num_experts: int) -> dict[str, Any]:
    """Top-2 with room for 1.25 of each token's two assignments.

    The weights of a token sum to one: with raw gates of eight experts, what a fresh sparse layer
    adds to the residual stream is several times smaller than what its dense twin adds.
    """
    router = {
        "name": "top_k",
        "num_experts": num_experts,
        "capacity_factor": 2.5,
        "renormalise": "before_drop",
    }
    return {
        "sparse_every": 2,
        "encoder_router": router,
        "decoder_router": {**router, **_IN_DECODER},
    }


PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # for tests
        "flan-moe-tiny": {
            "vocab_size": 512,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 2,
            "num_heads": 4,
            "dropout_rate": 0.0,
            **_top_2(4),
        },
        # for the quickstart: minutes on two CPU cores, so no dropout, and a vocabulary that the
        # tokenizer overrides
        "flan-moe-mini": {
            "vocab_size": 4096,
            "d_model": 96,
            "d_kv": 24,
            "d_ff": 192,
            "num_layers": 2,
            "num_heads": 4,
            "dropout_rate": 0.0,
            "z_coef": 1e-3,
            **_top_2(8),
        },
        "t5-v1.1-small": _SMALL,
        "t5-v1.1-base": _BASE,
        "flan-ec-small": {**_SMALL, **_expert_choice(32)},
        "flan-ec-base": {**_BASE, **_expert_choice(64)},
        "flan-gs-small": {**_SMALL, **_top_2_token_choice(32)},
        "flan-gs-base": {**_BASE, **_top_2_token_choice(64)},
        "flan-switch-base-8": _switch_base(8),
        "flan-switch-base": _switch_base(128),
    }
)
"""Arguments of `FlanMoEConfig` by preset name."""


def flan_moe_config(preset: str, **overrides: Any) -> FlanMoEConfig:
    """The configuration that a preset names.

    Args:
        preset: a key of `PRESETS`.
        **overrides: arguments of `FlanMoEConfig` that replace the preset's, such as
            ``vocab_size``.

    Returns:
        A new, checked configuration.

    Raises:
        ValueError: for an unknown preset, or values that do not fit.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r}: expected one of {', '.join(map(repr, PRESETS))}")
    return FlanMoEConfig(**{**PRESETS[preset], **overrides})
