"""Named configurations.

Sizes, sparse layers, routers and loss coefficients of the ``t5-v1.1``, ``flan-switch``,
``flan-gs``, ``flan-ec`` and ``flan-st`` presets are those of the public flaxformer configs
``t5_1_1_*``, ``switch_*``, ``tokens_choose_*``, ``experts_choose_*`` and ``st_moe_*``, from which
the families of the Flan-MoE paper derive; dropout is the paper's for instruction tuning. Their
parameter totals are tested against the published ones.

They differ from those configs in this: evaluation drops nothing (the configs then give experts room
for 2 or 4 times their share), capacity is counted over all tokens of a call (there over groups of
1,024 to 8,192), full decoders serve one token after the other, and weights start as T5's (there
matrices start ``0.1 ** 0.5`` times as large).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from flan_moe.model.config import FlanMoEConfig

_FLAN = {"vocab_size": 32128, "d_kv": 64, "dropout_rate": 0.05, "expert_dropout_rate": 0.2}
_SMALL = {**_FLAN, "d_model": 512, "d_ff": 1024, "num_layers": 8, "num_heads": 6}
_BASE = {**_FLAN, "d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12}
_LARGE = {**_FLAN, "d_model": 1024, "d_ff": 2816, "num_layers": 24, "num_heads": 16}
_XL = {**_FLAN, "d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32}
_XXL = {**_FLAN, "d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
_32B = {**_FLAN, "d_model": 5120, "d_ff": 20480, "num_layers": 24, "num_heads": 64, "d_kv": 128}

_RELU_TIED = {"activation": "relu", "tie_word_embeddings": True}

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


def _switch(num_experts: int, **router: Any) -> dict[str, Any]:
    """Top-1 in every other layer of both stacks."""
    router = {"name": "switch", "num_experts": num_experts, **router}
    return {"sparse_every": 2, "encoder_router": router, "decoder_router": router}


def _switch_base(num_experts: int) -> dict[str, Any]:
    return {**_BASE, "d_ff": 3072, **_RELU_TIED, **_switch(num_experts)}


def _st_moe(num_experts: int, *, z_coef: float, **router: Any) -> dict[str, Any]:
    """Top-2 in every fourth layer, each followed by a dense network, without batch priority.

    The router is flaxformer's, with raw gates. ``{"name": "st_moe", ...}`` is that of the ST-MoE
    paper's own code, with the pair of gates renormalised and the second expert drawn.
    """
    router = {"name": "top_k", "num_experts": num_experts, **router}
    return {
        "sparse_every": 4,
        "extra_feed_forward": True,
        "z_coef": z_coef,
        "encoder_router": router,
        "decoder_router": {**router, **_IN_DECODER},
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
        "t5-v1.1-large": _LARGE,
        "t5-v1.1-xl": _XL,
        "t5-v1.1-xxl": _XXL,
        "flan-ec-small": {**_SMALL, **_expert_choice(32)},
        "flan-ec-base": {**_BASE, **_expert_choice(64)},
        "flan-ec-large": {**_LARGE, **_expert_choice(64)},
        "flan-ec-xl": {**_XL, **_expert_choice(64)},
        "flan-ec-xxl": {**_XXL, **_expert_choice(64)},
        "flan-gs-small": {**_SMALL, **_top_2_token_choice(32)},
        "flan-gs-base": {**_BASE, **_top_2_token_choice(64)},
        "flan-gs-large": {**_LARGE, **_top_2_token_choice(64)},
        "flan-gs-xl": {**_XL, **_top_2_token_choice(64)},
        "flan-gs-xxl": {**_XXL, **_top_2_token_choice(64)},
        "flan-switch-base-8": _switch_base(8),
        "flan-switch-base-16": _switch_base(16),
        "flan-switch-base-32": _switch_base(32),
        "flan-switch-base-64": _switch_base(64),
        "flan-switch-base-128": _switch_base(128),
        "flan-switch-base-256": _switch_base(256),
        "flan-switch-base": _switch_base(128),
        "flan-switch-large": {**_LARGE, "d_ff": 4096, **_RELU_TIED, **_switch(128)},
        "flan-switch-xxl": {**_XXL, **_switch(128, min_capacity=2)},
        "flan-st-base": {**_BASE, **_st_moe(16, z_coef=1e-4)},
        "flan-st-xl": {**_XL, **_st_moe(16, z_coef=1e-4, capacity_factor=2.0)},
        "flan-st-32b": {**_32B, **_st_moe(64, z_coef=1e-3)},
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
