"""Our models and transformers' with the same random weights, and our dense twin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import (
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from flan_moe.model import FlanMoEConfig, FlanMoEForConditionalGeneration, dense_twin

_TIED = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of a Switch model with every other layer sparse; ``layers`` in each stack."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_heads: int
    layers: int
    num_experts: int


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Two models with the same weights.

    Attributes:
        ours: in evaluation mode, without dropout and without weight on auxiliary losses.
        theirs: transformers', the same.
        theirs_name: of our parameters in their state dict; those of experts with ``{expert}``.
    """

    ours: FlanMoEForConditionalGeneration
    theirs: nn.Module
    theirs_name: Mapping[str, str]


def our_config(sizes: Sizes) -> FlanMoEConfig:
    """Top-1 and dropless, ReLU, tied head."""
    router = {"name": "switch", "num_experts": sizes.num_experts, "capacity_factor": None}
    return FlanMoEConfig(
        **_shared(sizes),
        activation="relu",
        tie_word_embeddings=True,
        dropout_rate=0.0,
        balance_coef=0.0,
        encoder_router=router,
        decoder_router=router,
    )


def switch_sides(sizes: Sizes, *, row_length: int, device: str) -> Sides:
    """A Switch model.

    Args:
        sizes: of both.
        row_length: capacity of their experts, which is per row: nothing is dropped.
        device: of both.
    """
    ours = _ours(our_config(sizes), device)
    for name, weight in ours.named_parameters():
        if "router" in name:  # decided enough that rounding flips no token's expert
            nn.init.normal_(weight, std=0.5)
    with torch.device(device):
        theirs = SwitchTransformersForConditionalGeneration(
            SwitchTransformersConfig(
                **_shared(sizes),
                num_decoder_layers=sizes.layers,
                num_sparse_encoder_layers=sizes.layers // 2,
                num_sparse_decoder_layers=sizes.layers // 2,
                num_experts=sizes.num_experts,
                expert_capacity=row_length,
                dropout_rate=0.0,
                router_jitter_noise=0.0,
                decoder_start_token_id=0,
            )
        )
    return _with_same_weights(ours, theirs.eval(), dense_name="mlp")


def dense_sides(sizes: Sizes, device: str) -> Sides:
    """The dense twin, equal in FLOPs to the Switch model of the same sizes, and T5."""
    ours = _ours(dense_twin(our_config(sizes)), device)
    with torch.device(device):
        theirs = T5ForConditionalGeneration(
            T5Config(
                **_shared(sizes),
                num_decoder_layers=sizes.layers,
                feed_forward_proj="relu",
                dropout_rate=0.0,
                decoder_start_token_id=0,
            )
        )
    return _with_same_weights(ours, theirs.eval(), dense_name="DenseReluDense")


def their_gradient(sides: Sides, name: str, expert: int) -> Tensor:
    """Gradient of our parameter ``name`` in their model; of one expert if it is an expert's."""
    key = sides.theirs_name[name]
    gradient = sides.theirs.get_parameter(key.format(expert=expert)).grad
    return gradient.T if "{expert}" in key else gradient


def _shared(sizes: Sizes) -> dict[str, int]:
    return {
        "vocab_size": sizes.vocab_size,
        "d_model": sizes.d_model,
        "d_kv": sizes.d_kv,
        "d_ff": sizes.d_ff,
        "num_heads": sizes.num_heads,
        "num_layers": sizes.layers,
    }


def _ours(config: FlanMoEConfig, device: str) -> FlanMoEForConditionalGeneration:
    torch.manual_seed(0)
    with torch.device(device):
        return FlanMoEForConditionalGeneration(config).eval()


@torch.no_grad()
def _with_same_weights(
    ours: FlanMoEForConditionalGeneration, theirs: nn.Module, *, dense_name: str
) -> Sides:
    names = {name: _their_name(name, dense_name) for name, _ in ours.named_parameters()}
    left = dict(theirs.named_parameters())
    for name, weight in ours.named_parameters():
        if "{expert}" in names[name]:
            for expert, matrix in enumerate(weight):
                left.pop(names[name].format(expert=expert)).copy_(matrix.T)
        else:
            left.pop(names[name]).copy_(weight)
    if set(left) - _TIED:
        raise SystemExit(f"no weights for {sorted(left)} of {type(theirs).__name__}")
    return Sides(ours=ours, theirs=theirs, theirs_name=names)


def _their_name(name: str, dense_name: str) -> str:
    """Transformers' name of our parameter."""
    stack, *path = name.split(".")
    if stack == "shared":
        return name
    if path[0] == "final_norm":
        return f"{stack}.final_layer_norm.weight"
    if path[0] == "position_bias":
        return f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    parts = {"self_attention": "SelfAttention"}
    if stack == "decoder":
        parts["cross_attention"] = "EncDecAttention"
    parts["feed_forward"] = dense_name
    part = path[2].removesuffix("_norm")
    prefix = f"{stack}.block.{path[1]}.layer.{list(parts).index(part)}"
    if path[2].endswith("_norm"):
        return f"{prefix}.layer_norm.weight"
    if path[3] == "router":
        return f"{prefix}.mlp.router.classifier.weight"
    if path[3] == "experts":
        return f"{prefix}.mlp.experts.expert_{{expert}}.{path[4]}.weight"
    return f"{prefix}.{parts[part]}.{'.'.join(path[3:])}"
