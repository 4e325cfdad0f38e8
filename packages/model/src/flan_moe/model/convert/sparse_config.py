"""The configuration of a sparse model that starts as a dense one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from flan_moe.model.config import STACK_NAMES, FlanMoEConfig
from flan_moe.model.presets import PRESETS
from flan_moe.routing import RouterConfig

# What a preset says about routing; sizes are those of the dense model.
_ROUTING_KEYS = (
    "sparse_every",
    "encoder_router",
    "decoder_router",
    "extra_feed_forward",
    "expert_dropout_rate",
    "balance_coef",
    "z_coef",
)

# Sizes that a dense model and the sparse one made of it have in common.
SHARED_KEYS = (
    "vocab_size",
    "d_model",
    "d_kv",
    "d_ff",
    "num_layers",
    "num_decoder_layers",
    "num_heads",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "layer_norm_epsilon",
    "activation",
    "tie_word_embeddings",
)


def preset_routing(preset: str) -> dict[str, Any]:
    """The options of a preset that concern routing, for `upcycled_config`.

    Raises:
        ValueError: for an unknown preset, or a dense one.
    """
    sparse = [name for name, options in PRESETS.items() if options.get("encoder_router")]
    if preset not in sparse:
        what = "is dense" if preset in PRESETS else "is unknown"
        raise ValueError(f"preset {preset!r} {what}: expected one of {', '.join(sparse)}")
    return {key: PRESETS[preset][key] for key in _ROUTING_KEYS if key in PRESETS[preset]}


def upcycled_config(
    dense: FlanMoEConfig,
    *,
    renormalise: bool = False,
    granularity: int = 1,
    sparse_every: int = 2,
    **routing: Any,
) -> FlanMoEConfig:
    """A configuration with the sizes of a dense model and with experts.

    With granularity G, an expert is one of G slices of the hidden units: there are G times as many
    experts of ``d_ff / G`` units, and a token takes G times as many, so that parameters and FLOPs
    stay. A capacity that is counted per choice grows by G, so that an expert's room stays, too.

    Args:
        dense: without routers.
        renormalise: make the weights of a token sum to one over the experts it takes, in place
            of what ``routing`` says.
        granularity: G.
        sparse_every: every how many layers have experts.
        **routing: other arguments of `FlanMoEConfig`: ``encoder_router``, ``decoder_router``, ...;
            see `preset_routing`.

    Raises:
        ValueError: if ``dense`` has routers or widths of its own, ``d_ff`` is not divisible, or
            an option does not fit.
    """
    _check_dense(dense)
    if not isinstance(granularity, int) or granularity < 1 or dense.d_ff % granularity:
        raise ValueError(f"granularity={granularity!r}: expected a divisor of d_ff, {dense.d_ff}")
    config = copy.deepcopy(dense)
    config.dense_ff_widths = None
    config.sparse_every = sparse_every
    for key, value in routing.items():
        setattr(config, key, value)
    for stack in STACK_NAMES:
        values = getattr(config, f"{stack}_router")
        if values is not None:
            router = _split_router(values, renormalise, granularity)
            setattr(config, f"{stack}_router", router)
    if granularity > 1:
        config.expert_d_ff = dense.d_ff // granularity
    config.check()
    if not (config.encoder_router or config.decoder_router):
        raise ValueError("upcycling: no router given; expected encoder_router, decoder_router")
    return config


def check_upcycled(dense: FlanMoEConfig, sparse: FlanMoEConfig) -> int:
    """Check that a sparse model can start as a dense one.

    Returns:
        The granularity: slices of the dense network, each of which is an expert.

    Raises:
        ValueError: naming the key that keeps it from being so.
    """
    _check_dense(dense)
    for key in SHARED_KEYS:
        found, expected = getattr(sparse, key), getattr(dense, key)
        if found != expected:
            raise ValueError(
                f"upcycling: {key}={found!r}: expected {expected!r} of the dense model"
            )
    width = sparse.d_ff if sparse.expert_d_ff is None else sparse.expert_d_ff
    if dense.d_ff % width:
        raise ValueError(
            f"upcycling: expert_d_ff={width}: expected a divisor of d_ff, {dense.d_ff}"
        )
    granularity = dense.d_ff // width
    for stack in STACK_NAMES:
        router = sparse.router_config(stack)
        if router is not None and granularity > 1:
            _check_split(f"{stack}_router", router, granularity)
    return granularity


def _check_dense(dense: FlanMoEConfig) -> None:
    for stack in STACK_NAMES:
        router = getattr(dense, f"{stack}_router")
        if router is not None:
            raise ValueError(
                f"upcycling: {stack}_router={router['name']!r}: expected a dense model, None"
            )
        widths = {dense.ff_width(stack, layer) for layer in range(dense.layer_count(stack))}
        if widths != {dense.d_ff}:
            raise ValueError(
                f"upcycling: dense_ff_widths.{stack}={sorted(widths)}: expected {dense.d_ff} "
                "for all layers"
            )


def _split_router(values: Mapping[str, Any], renormalise: bool, granularity: int) -> dict[str, Any]:
    """A router for G times as many experts, of which a token takes G times as many."""
    options = dict(values)
    if renormalise:
        options["renormalise"] = "before_drop"
    router = RouterConfig.from_dict(options)
    if granularity == 1:
        return router.to_dict()
    options = router.to_dict()
    options["num_experts"] *= granularity
    expert_choice = router.selection == "expert_choice"
    if not expert_choice:
        options["top_k"] *= granularity
    if router.capacity_per == "choice" or expert_choice:
        for key in ("capacity_factor", "eval_capacity_factor"):
            if options[key] is not None:
                options[key] *= granularity
    return RouterConfig.from_dict(options).to_dict()


def _check_split(key: str, router: RouterConfig, granularity: int) -> None:
    if router.selection not in ("top_k", "expert_choice"):
        raise ValueError(
            f"upcycling: {key}.selection={router.selection!r}: expected 'top_k' or 'expert_choice' "
            f"for granularity {granularity}: the slices of a network must be taken together"
        )
    counted = ["num_experts"] if router.selection == "expert_choice" else ["num_experts", "top_k"]
    for option in counted:
        value = getattr(router, option)
        if value % granularity:
            raise ValueError(
                f"upcycling: {key}.{option}={value}: expected a multiple of the granularity, "
                f"{granularity}"
            )
