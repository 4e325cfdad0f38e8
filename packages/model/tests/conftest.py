"""Weights from transformers' models, and small configurations."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from flan_moe.model import FlanMoEConfig, FlanMoEForConditionalGeneration
from flan_moe.model.convert import flan_moe_names

SIZES = {
    "vocab_size": 61,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 4,
    "num_heads": 4,
}

WORDS = ["<pad>", "</s>", "<unk>", "Is", "7", "a", "prime", "number", "?", "yes", "no"]


@pytest.fixture
def tokenizer():
    """Of eleven words; it ends a text with ``</s>``, whose id is 1."""
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture
def with_weights_of():
    """A function that gives a Flan-MoE model the weights of a T5 or Switch one."""

    def copy(config, source_model):
        layout = "hf-t5" if isinstance(source_model, T5ForConditionalGeneration) else "hf-switch"
        state = flan_moe_names(config, source_model.state_dict(), layout)
        state["lm_head.weight"] = source_model.lm_head.weight.detach()
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
def t5_dir(tmp_path):
    """A small T5 v1.1 checkpoint of transformers in one safetensors file."""
    torch.manual_seed(0)
    config = T5Config(
        **{**SIZES, "num_layers": 2},
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    model = T5ForConditionalGeneration(config)
    model.lm_head.weight = torch.nn.Parameter(torch.randn(SIZES["vocab_size"], 32))
    model.save_pretrained(tmp_path / "t5")
    return tmp_path / "t5"


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
