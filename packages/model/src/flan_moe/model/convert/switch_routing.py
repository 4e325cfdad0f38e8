"""Routing of transformers' Switch Transformers, to ours and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flan_moe.model.config import STACK_NAMES, FlanMoEConfig, StackName
from flan_moe.model.convert.refusal import refuse
from flan_moe.routing import RouterConfig

_MOST_LAYERS = 10_000
_LAYER_COUNTS = (
    "num_layers",
    "num_decoder_layers",
    "num_sparse_encoder_layers",
    "num_sparse_decoder_layers",
    "encoder_sparse_step",
    "decoder_sparse_step",
)

# What decides the output of an evaluation without drops; other options are training's.
_ROUTER_KEYS = (
    "top_k",
    "score",
    "selection",
    "weights",
    "renormalise",
    "weight_scale",
    "bias_update",
    "num_groups",
)


def import_routing(value: Callable[[str], Any], origin: str) -> dict[str, Any]:
    """Options of our configuration for the routing of a Switch checkpoint.

    Args:
        value: gives the value of a key of its config.json.
        origin: the file, for messages.

    Raises:
        ValueError: naming what has no counterpart here.
    """
    for key in _LAYER_COUNTS:
        found = value(key)
        if found is None and key.endswith("_step"):
            continue
        if type(found) is not int or not 0 <= found <= _MOST_LAYERS:
            refuse(origin, key, found, f"an integer from 0 to {_MOST_LAYERS}")
    for key in ("router_z_loss_coef", "router_aux_loss_coef"):
        if not isinstance(value(key), int | float):
            refuse(origin, key, value(key), "a number")
    if value("router_bias"):
        refuse(origin, "router_bias", True, "false: routers have no bias here")
    counts = {"encoder": value("num_layers"), "decoder": value("num_decoder_layers")}
    layers = {}
    for stack, count in counts.items():
        # A config.json usually has the distance besides, and transformers then believes that.
        step = value(f"{stack}_sparse_step")
        if step is None:
            step = switch_step(count, value(f"num_sparse_{stack}_layers"))
        layers[stack] = sparse_layers_of_switch(count, step)
    router = {
        "name": "switch",
        "num_experts": value("num_experts"),
        "jitter": value("router_jitter_noise"),
    }
    stacks = sum(bool(found) for found in layers.values())
    return {
        "sparse_every": _sparse_every(layers, counts, origin),
        "encoder_router": router if layers["encoder"] else None,
        "decoder_router": router if layers["decoder"] else None,
        "z_coef": value("router_z_loss_coef") * stacks,
        "balance_coef": value("router_aux_loss_coef") * stacks,
    }


def _sparse_every(
    sparse: Mapping[StackName, list[int]], counts: Mapping[StackName, int], origin: str
) -> int:
    """The distance that gives the same sparse layers in both stacks."""
    if not any(sparse.values()):
        return 0
    for every in range(1, max(counts.values()) + 1):
        if all(
            not layers or layers == list(range(every - 1, counts[stack], every))
            for stack, layers in sparse.items()
        ):
            return every
    raise ValueError(
        f"{origin}: sparse layers {sparse['encoder']} of the encoder and {sparse['decoder']} of "
        "the decoder; expected every n-th layer, with one n for both: n-1, 2n-1, ..."
    )


def export_routing(config: FlanMoEConfig, kept: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Keys of Switch's config.json for the routing of our model.

    Args:
        config: of our model.
        kept: see `export_config`.
        origin: the file of ``config``, for messages.

    Raises:
        ValueError: naming what Switch cannot represent.
    """
    routers = {stack: config.router_config(stack) for stack in STACK_NAMES}
    for stack, router in routers.items():
        _check_switch_router(stack, router, origin)
    if config.extra_feed_forward:
        refuse(origin, "extra_feed_forward", True, "false: Switch has no such network")
    if config.expert_d_ff not in (None, config.d_ff):
        refuse(origin, "expert_d_ff", config.expert_d_ff, f"d_ff, {config.d_ff}, as in Switch")
    encoder, decoder = routers["encoder"], routers["decoder"]
    for key in ("num_experts", "jitter"):
        if getattr(encoder, key) != getattr(decoder, key):
            both = (getattr(encoder, key), getattr(decoder, key))
            refuse(origin, f"*_router.{key}", both, "the same in both stacks")
    return {
        "num_experts": encoder.num_experts,
        "router_jitter_noise": encoder.jitter,
        "num_sparse_encoder_layers": _num_sparse(config, "encoder", kept, origin),
        "num_sparse_decoder_layers": _num_sparse(config, "decoder", kept, origin),
        "router_z_loss_coef": config.z_coef / 2,
        "router_aux_loss_coef": config.balance_coef / 2,
    }


def _check_switch_router(stack: StackName, router: RouterConfig | None, origin: str) -> None:
    if router is None:
        refuse(origin, f"{stack}_router", None, "a router: Switch is sparse in both stacks")
    switch = RouterConfig(name="switch", num_experts=router.num_experts)
    for key in _ROUTER_KEYS:
        if getattr(router, key) != getattr(switch, key):
            expected = f"{getattr(switch, key)!r} as in Switch"
            refuse(origin, f"{stack}_router.{key}", getattr(router, key), expected)
    if router.eval_capacity_factor is not None:
        refuse(
            origin,
            f"{stack}_router.eval_capacity_factor",
            router.eval_capacity_factor,
            "None: Switch counts capacity per row",
        )


def _num_sparse(
    config: FlanMoEConfig, stack: StackName, kept: Mapping[str, Any], origin: str
) -> int:
    count = config.layer_count(stack)
    sparse = [layer for layer in range(count) if config.is_sparse(stack, layer)]
    # Several numbers may give the same layers: the one it had, then the number of layers there are.
    before = kept.get(f"num_sparse_{stack}_layers")
    for number in (before, len(sparse), *range(count + 1)):
        if type(number) is not int:
            continue
        if sparse_layers_of_switch(count, switch_step(count, number)) == sparse:
            return number
    raise ValueError(
        f"{origin}: sparse layers {sparse} of the {stack}; Switch can have every layer, or layer 1 "
        "and every n-th from there"
    )


def sparse_layers_of_switch(num_layers: int, step: int) -> list[int]:
    """Where transformers puts the sparse layers of a stack of Switch Transformers."""
    if step == 0:
        return []
    return [layer for layer in range(num_layers) if step == 1 or layer % step == 1]


def switch_step(num_layers: int, num_sparse: int) -> int:
    """Distance of sparse layers, as transformers makes it of their number.

    For ``num_sparse=0`` it is the number of layers, so that there still is one.
    """
    return num_layers // num_sparse if num_sparse > 0 else num_layers
