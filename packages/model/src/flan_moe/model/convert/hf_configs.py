"""Configurations of transformers' T5 and Switch Transformers, to ours and back.

Files are read and written as JSON, not through transformers' classes: those differ between
versions in what they do to an untied head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from transformers import SwitchTransformersConfig, T5Config

from flan_moe.model.config import STACK_NAMES, FlanMoEConfig, StackName
from flan_moe.model.convert.hf_names import HFFormat
from flan_moe.routing import RouterConfig

_SAME_KEYS = (
    "vocab_size",
    "d_model",
    "d_kv",
    "d_ff",
    "num_layers",
    "num_decoder_layers",
    "num_heads",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "dropout_rate",
    "layer_norm_epsilon",
    "initializer_factor",
    "pad_token_id",
    "eos_token_id",
    "decoder_start_token_id",
)

# transformers calls the tanh approximation, which ours is, "gelu_new"; its "gelu" is another
# function. "gated-gelu" is an old name for the former.
_T5_ACTIVATIONS = MappingProxyType(
    {"relu": "relu", "gelu_new": "gelu", "gated-gelu": "geglu", "gated-silu": "swiglu"}
)
_SWITCH_ACTIVATIONS = MappingProxyType({"relu": "relu", "gelu_new": "gelu"})

_MOST_LAYERS = 10_000

# transformers computes these from other keys, unless a config.json has them.
_DERIVED_KEYS = frozenset(
    {"is_gated_act", "dense_act_fn", "encoder_sparse_step", "decoder_sparse_step"}
)

MODEL_TYPES: Mapping[str, HFFormat] = MappingProxyType(
    {"t5": "hf-t5", "switch_transformers": "hf-switch"}
)
"""Layouts by the ``model_type`` of a config.json."""


def import_config(values: Mapping[str, Any], origin: str) -> FlanMoEConfig:
    """Our configuration for a T5 or Switch checkpoint.

    Switch's ``router_z_loss_coef`` and ``router_aux_loss_coef`` weigh the sum of both stacks'
    losses, ours the mean over all sparse layers: they are multiplied by the number of sparse stacks
    (equal where both have as many sparse layers). ``expert_capacity``, a number of tokens per row,
    has no counterpart: training has the capacity of the preset ``"switch"``, evaluation drops
    nothing.

    Args:
        values: the content of a config.json.
        origin: the file, for messages.

    Raises:
        ValueError: naming what has no counterpart here.
    """
    layout = MODEL_TYPES.get(values.get("model_type"))
    if layout is None:
        _refuse(origin, "model_type", values.get("model_type"), f"one of {_quoted(MODEL_TYPES)}")
    defaults = _defaults(layout)

    def value(key: str) -> Any:
        return values.get(key, defaults.get(key))

    defaults["num_decoder_layers"] = defaults["num_decoder_layers"] or value("num_layers")
    ours = {key: value(key) for key in _SAME_KEYS}
    if ours["decoder_start_token_id"] is None:
        ours["decoder_start_token_id"] = ours["pad_token_id"]
    # transformers 5 always ties T5 in a config.json, and keeps what it was told elsewhere.
    tied = values.get("scale_decoder_outputs", value("tie_word_embeddings"))
    ours["tie_word_embeddings"] = tied is not False
    if layout == "hf-t5":
        name = _t5_activation(value("feed_forward_proj"), values, origin)
        ours |= {"activation": name, "sparse_every": 0}
    else:
        ours |= _switch_options(value, origin)
    try:
        return FlanMoEConfig(**ours)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error


def export_config(
    config: FlanMoEConfig, layout: HFFormat, kept: Mapping[str, Any], origin: str
) -> dict[str, Any]:
    """The config.json of a T5 or Switch model with the function of ours.

    Args:
        config: of our model.
        layout: which.
        kept: values for keys that ours does not have, such as ``expert_capacity``; of the
            checkpoint that ours was imported from.
        origin: the file of ``config``, for messages.

    Raises:
        ValueError: naming what the layout cannot represent.
    """
    known = _T5_ACTIVATIONS if layout == "hf-t5" else _SWITCH_ACTIVATIONS
    theirs = [name for name, ours in known.items() if ours == config.activation]
    if not theirs:
        _refuse(origin, "activation", config.activation, f"{_options(known.values())} for {layout}")
    values = {key: value for key, value in kept.items() if key not in _DERIVED_KEYS}
    values |= {key: getattr(config, key) for key in _SAME_KEYS}
    values |= {"is_encoder_decoder": True, "tie_word_embeddings": config.tie_word_embeddings}
    if "scale_decoder_outputs" in kept:
        values["scale_decoder_outputs"] = config.tie_word_embeddings
    if layout == "hf-t5":
        for stack in STACK_NAMES:
            if getattr(config, f"{stack}_router") is not None:
                name = getattr(config, f"{stack}_router")["name"]
                _refuse(origin, f"{stack}_router", name, "None: T5 has no experts")
            widths = {config.ff_width(stack, i) for i in range(config.layer_count(stack))}
            if widths != {config.d_ff}:
                _refuse(origin, "dense_ff_widths", config.dense_ff_widths, f"{config.d_ff} for all")
        return values | {
            "model_type": "t5",
            "architectures": ["T5ForConditionalGeneration"],
            "feed_forward_proj": theirs[0],
        }
    return values | {
        "model_type": "switch_transformers",
        "architectures": ["SwitchTransformersForConditionalGeneration"],
        "dense_act_fn": theirs[0],
        **_export_routing(config, origin),
    }


def sparse_layers_of_switch(num_layers: int, num_sparse: int) -> list[int]:
    """Where transformers puts the sparse layers of a stack of Switch Transformers.

    With ``num_sparse=0`` it still makes one.
    """
    step = num_layers // num_sparse if num_sparse > 0 else num_layers
    if step == 0:
        return []
    return [layer for layer in range(num_layers) if step == 1 or layer % step == 1]


def _t5_activation(name: object, values: Mapping[str, Any], origin: str) -> str:
    if name not in _T5_ACTIVATIONS:
        expected = _options(_T5_ACTIVATIONS)
        if name == "gelu":
            expected += " (the exact GELU has no counterpart, only its tanh approximation)"
        _refuse(origin, "feed_forward_proj", name, expected)
    implied = "gelu_new" if name == "gated-gelu" else str(name).removeprefix("gated-")
    if values.get("dense_act_fn", implied) != implied:
        _refuse(origin, "dense_act_fn", values["dense_act_fn"], f"{implied!r} for {name!r}")
    return _T5_ACTIVATIONS[name]


def _switch_options(value: Callable[[str], Any], origin: str) -> dict[str, Any]:
    activation = value("dense_act_fn")
    if activation not in _SWITCH_ACTIVATIONS:
        _refuse(origin, "dense_act_fn", activation, _options(_SWITCH_ACTIVATIONS))
    for key in ("num_layers", "num_sparse_encoder_layers", "num_decoder_layers",
                "num_sparse_decoder_layers"):  # fmt: skip
        if type(value(key)) is not int or not 0 <= value(key) <= _MOST_LAYERS:
            _refuse(origin, key, value(key), f"an integer from 0 to {_MOST_LAYERS}")
    for key in ("router_z_loss_coef", "router_aux_loss_coef"):
        if not isinstance(value(key), int | float):
            _refuse(origin, key, value(key), "a number")
    if value("router_bias"):
        _refuse(origin, "router_bias", True, "false: routers have no bias here")
    layers = {
        "encoder": sparse_layers_of_switch(value("num_layers"), value("num_sparse_encoder_layers")),
        "decoder": sparse_layers_of_switch(
            value("num_decoder_layers"), value("num_sparse_decoder_layers")
        ),
    }
    router = {
        "name": "switch",
        "num_experts": value("num_experts"),
        "jitter": value("router_jitter_noise"),
    }
    stacks = sum(bool(found) for found in layers.values())
    return {
        "activation": _SWITCH_ACTIVATIONS[activation],
        "sparse_every": _sparse_every(
            layers,
            {"encoder": value("num_layers"), "decoder": value("num_decoder_layers")},
            origin,
        ),
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


def _export_routing(config: FlanMoEConfig, origin: str) -> dict[str, Any]:
    routers = {stack: config.router_config(stack) for stack in STACK_NAMES}
    for stack, router in routers.items():
        _check_switch_router(stack, router, origin)
    if config.extra_feed_forward:
        _refuse(origin, "extra_feed_forward", True, "false: Switch has no such network")
    encoder, decoder = routers["encoder"], routers["decoder"]
    for key in ("num_experts", "jitter"):
        if getattr(encoder, key) != getattr(decoder, key):
            both = (getattr(encoder, key), getattr(decoder, key))
            _refuse(origin, f"*_router.{key}", both, "the same in both stacks")
    return {
        "num_experts": encoder.num_experts,
        "router_jitter_noise": encoder.jitter,
        "num_sparse_encoder_layers": _num_sparse(config, "encoder", origin),
        "num_sparse_decoder_layers": _num_sparse(config, "decoder", origin),
        "router_z_loss_coef": config.z_coef / 2,
        "router_aux_loss_coef": config.balance_coef / 2,
    }


def _check_switch_router(stack: StackName, router: RouterConfig | None, origin: str) -> None:
    if router is None:
        _refuse(origin, f"{stack}_router", None, "a router: Switch is sparse in both stacks")
    switch = RouterConfig(name="switch", num_experts=router.num_experts)
    # What decides the output of an evaluation without drops; the rest is training's.
    for key in ("top_k", "score", "selection", "weights", "renormalise", "weight_scale",
                "bias_update", "num_groups"):  # fmt: skip
        if getattr(router, key) != getattr(switch, key):
            expected = f"{getattr(switch, key)!r} as in Switch"
            _refuse(origin, f"{stack}_router.{key}", getattr(router, key), expected)
    if router.eval_capacity_factor is not None:
        _refuse(
            origin,
            f"{stack}_router.eval_capacity_factor",
            router.eval_capacity_factor,
            "None: Switch counts capacity per row",
        )


def _num_sparse(config: FlanMoEConfig, stack: StackName, origin: str) -> int:
    count = config.layer_count(stack)
    sparse = [layer for layer in range(count) if config.is_sparse(stack, layer)]
    for number in range(1, count + 1):
        if sparse_layers_of_switch(count, number) == sparse:
            return number
    raise ValueError(
        f"{origin}: sparse layers {sparse} of the {stack}; Switch can have every layer, or layer 1 "
        "and every n-th from there"
    )


def _defaults(layout: HFFormat) -> dict[str, Any]:
    """Values of keys that a config.json leaves out."""
    config = T5Config() if layout == "hf-t5" else SwitchTransformersConfig()
    values = {**config.to_dict(), "tie_word_embeddings": True}
    if layout == "hf-t5":
        values["num_decoder_layers"] = None  # as many as in the encoder
    return values


def _options(names: Any) -> str:
    return f"one of {_quoted(names)}"


def _quoted(names: Any) -> str:
    return ", ".join(map(repr, names))


def _refuse(origin: str, key: str, value: object, expected: str) -> None:
    raise ValueError(f"{origin}: {key}={value!r}: expected {expected}")
