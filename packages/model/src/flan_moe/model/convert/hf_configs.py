"""Configurations of transformers' T5 and Switch Transformers, to ours and back.

Files are read and written as JSON, not through transformers' classes: those differ between
versions in what they do to an untied head.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from transformers import SwitchTransformersConfig, T5Config

from flan_moe.model.config import STACK_NAMES, FlanMoEConfig
from flan_moe.model.convert.hf_names import HFFormat
from flan_moe.model.convert.refusal import options, refuse
from flan_moe.model.convert.switch_routing import export_routing, import_routing

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

# transformers computes these from other keys (Switch: all but the first), unless they are given.
_DERIVED_KEYS = frozenset(
    {"dense_act_fn", "is_gated_act", "encoder_sparse_step", "decoder_sparse_step"}
)

MODEL_TYPES: Mapping[str, HFFormat] = MappingProxyType(
    {"t5": "hf-t5", "switch_transformers": "hf-switch"}
)
"""Layouts by the ``model_type`` of a config.json."""


def layout_of(values: Mapping[str, Any], origin: str) -> HFFormat:
    """The layout that goes with a config.json.

    Raises:
        ValueError: for a ``model_type`` of another architecture.
    """
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
        refuse(origin, "model_type", model_type, options((FlanMoEConfig.model_type, *MODEL_TYPES)))
    return MODEL_TYPES[model_type]


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
    layout = layout_of(values, origin)
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
        activation = value("dense_act_fn")
        if not isinstance(activation, str) or activation not in _SWITCH_ACTIVATIONS:
            refuse(origin, "dense_act_fn", activation, options(_SWITCH_ACTIVATIONS))
        ours["activation"] = _SWITCH_ACTIVATIONS[activation]
        ours |= import_routing(value, origin)
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
        refuse(origin, "activation", config.activation, f"{options(known.values())} for {layout}")
    values = {key: value for key, value in kept.items() if key not in _DERIVED_KEYS}
    values |= {key: getattr(config, key) for key in _SAME_KEYS}
    values |= {"is_encoder_decoder": True, "tie_word_embeddings": config.tie_word_embeddings}
    if "scale_decoder_outputs" in kept:
        values["scale_decoder_outputs"] = config.tie_word_embeddings
    if layout == "hf-t5":
        for stack in STACK_NAMES:
            if getattr(config, f"{stack}_router") is not None:
                name = getattr(config, f"{stack}_router")["name"]
                refuse(origin, f"{stack}_router", name, "None: T5 has no experts")
            widths = {config.ff_width(stack, i) for i in range(config.layer_count(stack))}
            if widths != {config.d_ff}:
                refuse(origin, "dense_ff_widths", config.dense_ff_widths, f"{config.d_ff} for all")
        return values | {
            "model_type": "t5",
            "architectures": ["T5ForConditionalGeneration"],
            "feed_forward_proj": theirs[0],
        }
    return values | {
        "model_type": "switch_transformers",
        "architectures": ["SwitchTransformersForConditionalGeneration"],
        "dense_act_fn": theirs[0],
        **export_routing(config, kept, origin),
    }


def _t5_activation(name: Any, values: Mapping[str, Any], origin: str) -> str:
    if not isinstance(name, str) or name not in _T5_ACTIVATIONS:
        expected = options(_T5_ACTIVATIONS)
        if name == "gelu":
            expected += " (the exact GELU has no counterpart, only its tanh approximation)"
        refuse(origin, "feed_forward_proj", name, expected)
    gated = name.startswith("gated-")
    if values.get("is_gated_act", gated) is not gated:
        refuse(origin, "is_gated_act", values["is_gated_act"], f"{gated} for {name!r}")
    implied = "gelu_new" if name == "gated-gelu" else name.removeprefix("gated-")
    if values.get("dense_act_fn", implied) != implied:
        refuse(origin, "dense_act_fn", values["dense_act_fn"], f"{implied!r} for {name!r}")
    return _T5_ACTIVATIONS[name]


def _defaults(layout: HFFormat) -> dict[str, Any]:
    """Values of keys that a config.json leaves out, but for those that follow from others."""
    config = T5Config() if layout == "hf-t5" else SwitchTransformersConfig()
    values = {k: v for k, v in config.to_dict().items() if k not in _DERIVED_KEYS}
    values["tie_word_embeddings"] = True
    if layout == "hf-switch":
        values["dense_act_fn"] = config.dense_act_fn
    if layout == "hf-t5":
        values["num_decoder_layers"] = None  # as many as in the encoder
    return values
