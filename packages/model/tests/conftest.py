"""Weights from transformers' models, and small configurations."""

from __future__ import annotations

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from flan_moe.model import FlanMoEConfig, FlanMoEForConditionalGeneration

SIZES = {
    "vocab_size": 61,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 4,
    "num_heads": 4,
}


def _copy_stack(state, source, prefix, *, cross, gated):
    """Rename the weights of one stack of transformers' T5 or Switch."""
    feed_forward = 2 if cross else 1
    renamed = {
        f"{prefix}.position_bias.weight": source[
            f"{prefix}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        ],
        f"{prefix}.final_norm.weight": source[f"{prefix}.final_layer_norm.weight"],
    }
    layers = {key.split(".")[2] for key in source if key.startswith(f"{prefix}.block.")}
    for layer in sorted(layers):
        old, new = f"{prefix}.block.{layer}.layer", f"{prefix}.layers.{layer}"
        kinds = [(0, "SelfAttention", "self_attention")]
        if cross:
            kinds.append((1, "EncDecAttention", "cross_attention"))
        for index, old_name, new_name in kinds:
            for projection in "qkvo":
                renamed[f"{new}.{new_name}.{projection}.weight"] = source[
                    f"{old}.{index}.{old_name}.{projection}.weight"
                ]
            renamed[f"{new}.{new_name}_norm.weight"] = source[f"{old}.{index}.layer_norm.weight"]
        renamed[f"{new}.feed_forward_norm.weight"] = source[
            f"{old}.{feed_forward}.layer_norm.weight"
        ]
        _copy_feed_forward(
            renamed, source, f"{old}.{feed_forward}", f"{new}.feed_forward", gated=gated
        )
    state.update(renamed)


def _copy_feed_forward(renamed, source, old, new, *, gated):
    name = "DenseReluDense" if f"{old}.DenseReluDense.wo.weight" in source else "mlp"
    router = f"{old}.mlp.router.classifier.weight"
    if router in source:
        count = source[router].shape[0]
        expert = [f"{old}.mlp.experts.expert_{e}" for e in range(count)]
        renamed[f"{new}.router.weight"] = source[router]
        renamed[f"{new}.experts.wi"] = torch.stack([source[f"{e}.wi.weight"].T for e in expert])
        renamed[f"{new}.experts.wo"] = torch.stack([source[f"{e}.wo.weight"].T for e in expert])
        return
    renamed[f"{new}.wo.weight"] = source[f"{old}.{name}.wo.weight"]
    if gated:
        renamed[f"{new}.wi.weight"] = torch.cat(
            [source[f"{old}.{name}.wi_0.weight"], source[f"{old}.{name}.wi_1.weight"]]
        )
    else:
        renamed[f"{new}.wi.weight"] = source[f"{old}.{name}.wi.weight"]


@pytest.fixture
def with_weights_of():
    """A function that gives a Flan-MoE model the weights of a T5 or Switch one."""

    def copy(config, source_model):
        source = source_model.state_dict()
        state = {
            "shared.weight": source["shared.weight"],
            "lm_head.weight": source_model.lm_head.weight.detach(),
        }
        for prefix in ("encoder", "decoder"):
            _copy_stack(state, source, prefix, cross=prefix == "decoder", gated=config.is_gated)
        model = FlanMoEForConditionalGeneration(config).eval()
        model.load_state_dict(state)
        return model

    return copy


@pytest.fixture
def t5_pair(with_weights_of):
    """A function that makes a random T5 and our model with the same weights."""

    def make(*, gated, tied, **sizes):
        sizes = {**SIZES, "num_decoder_layers": 3, **sizes}
        torch.manual_seed(0)
        t5 = T5ForConditionalGeneration(
            T5Config(
                **sizes,
                feed_forward_proj="gated-gelu" if gated else "relu",
                tie_word_embeddings=tied,
                decoder_start_token_id=0,
            )
        ).eval()
        if not tied:
            # transformers 5 ties even so; T5 v1.1 has a head of its own.
            head = torch.randn(sizes["vocab_size"], sizes["d_model"]) * 0.3
            t5.lm_head.weight = torch.nn.Parameter(head)
        config = FlanMoEConfig(
            **sizes,
            activation="geglu" if gated else "relu",
            tie_word_embeddings=tied,
        )
        return t5, with_weights_of(config, t5)

    return make


@pytest.fixture
def sparse_config():
    """A function that makes a small sparse configuration without dropout."""

    def make(**overrides):
        router = {"name": "top_k", "num_experts": 4, "top_k": 2}
        return FlanMoEConfig(
            **{
                **SIZES,
                "num_decoder_layers": 2,
                "dropout_rate": 0.0,
                "encoder_router": router,
                "decoder_router": router,
                **overrides,
            }
        )

    return make


@pytest.fixture
def sparse_model(sparse_config):
    """A function that makes a small random sparse model in evaluation mode."""

    def make(seed=0, dtype=torch.float64, **overrides):
        torch.manual_seed(seed)
        # A larger factor than 1 keeps the outputs of a random model far from uniform; in return
        # it amplifies rounding, so that equalities are tested in float64.
        config = sparse_config(**{"initializer_factor": 2.0, **overrides})
        return FlanMoEForConditionalGeneration(config).to(dtype).eval()

    return make


@pytest.fixture
def batch():
    """Token ids of three sequences of different lengths, padded on the right."""
    generator = torch.Generator().manual_seed(7)
    input_ids = torch.randint(2, 61, (3, 11), generator=generator)
    labels = torch.randint(2, 61, (3, 8), generator=generator)
    mask = torch.ones_like(input_ids)
    mask[1, 6:] = 0
    mask[2, 9:] = 0
    labels[0, 5:] = -100
    labels[2, 7:] = -100
    input_ids = input_ids * mask
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}
