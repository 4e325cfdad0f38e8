"""Checkpoints: safetensors, the Auto classes, a fresh process, missing and resized weights."""

import json
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from flan_moe.model import (
    FlanMoEForConditionalGeneration,
    flan_moe_config,
    register_auto_classes,
)

FRESH_PROCESS = """
import json, sys, torch
from importlib.metadata import EntryPoint
EntryPoint("flan_moe", "flan_moe.model:register_auto_classes", "flan_moe.register_auto").load()()
from transformers import AutoModelForSeq2SeqLM
model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1]).eval()
ids = torch.tensor([[5, 6, 7, 1]])
out = model.generate(ids, max_new_tokens=6, no_repeat_ngram_size=1)
print(json.dumps([type(model).__name__, out[0].tolist()]))
"""


@pytest.fixture
def saved(sparse_model, tmp_path):
    def save(**overrides):
        model = sparse_model(dtype=torch.float32, **overrides)
        model.save_pretrained(tmp_path)
        return model, tmp_path

    return save


def assert_same_weights(actual, expected):
    state, other = actual.state_dict(), expected.state_dict()
    assert state.keys() == other.keys()
    for name, weight in state.items():
        assert torch.equal(weight, other[name]), name


@pytest.mark.parametrize("tied", [False, True])
def test_a_round_trip_is_bit_equal(saved, batch, tied):
    model, path = saved(tie_word_embeddings=tied)
    loaded = FlanMoEForConditionalGeneration.from_pretrained(path)
    assert not loaded.training
    assert_same_weights(loaded, model)
    assert loaded.config.to_dict() == model.config.to_dict() | {
        key: loaded.config.to_dict()[key]
        for key in ("dtype", "architectures", "_name_or_path")
        if key in loaded.config.to_dict()
    }
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    assert (loaded.lm_head.weight is loaded.shared.weight) == tied


@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_holds_each_weight_once_under_its_own_name(saved, tied):
    model, path = saved(tie_word_embeddings=tied)
    written = load_file(path / "model.safetensors")
    expected = {name for name, _ in model.named_parameters()}  # without duplicates
    assert written.keys() == expected
    assert ("lm_head.weight" in written) != tied
    assert not any("embed" in name for name in written)


def test_a_fresh_process_loads_it_through_the_auto_class(saved):
    model, path = saved()
    out = model.generate(torch.tensor([[5, 6, 7, 1]]), max_new_tokens=6, no_repeat_ngram_size=1)
    run = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS, str(path)], capture_output=True, text=True, check=True
    )
    assert json.loads(run.stdout.splitlines()[-1]) == [type(model).__name__, out[0].tolist()]


def test_registration_is_idempotent(saved):
    _, path = saved()
    register_auto_classes()
    register_auto_classes()
    assert AutoConfig.from_pretrained(path).model_type == "flan_moe"
    loaded = AutoModelForSeq2SeqLM.from_pretrained(path)
    assert isinstance(loaded, FlanMoEForConditionalGeneration)


def test_large_models_are_saved_in_shards(sparse_model, tmp_path):
    model = sparse_model(dtype=torch.float32)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert_same_weights(FlanMoEForConditionalGeneration.from_pretrained(tmp_path), model)


def test_missing_weights_are_initialised_and_present_ones_kept(saved):
    _, path = saved()
    written = load_file(path / "model.safetensors")
    missing = [
        "encoder.layers.1.feed_forward.experts.wo",
        "decoder.layers.0.self_attention.q.weight",
    ]
    for name in missing:
        del written[name]
    save_file(written, path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = FlanMoEForConditionalGeneration.from_pretrained(path, output_loading_info=True)
    assert set(info["missing_keys"]) == set(missing)
    state = loaded.state_dict()
    for name, weight in written.items():
        assert torch.equal(state[name], weight), name
    d_ff, d_kv, d_model = 48, 8, 32
    assert state[missing[0]].std().item() == pytest.approx(2 * d_ff**-0.5, rel=0.1)
    assert state[missing[1]].std().item() == pytest.approx(2 * (d_model * d_kv) ** -0.5, rel=0.15)


def test_half_precision_checkpoints(saved, batch):
    model, path = saved(initializer_factor=1.0)
    half = FlanMoEForConditionalGeneration.from_pretrained(path, dtype=torch.bfloat16)
    assert half.shared.weight.dtype == torch.bfloat16
    with torch.no_grad():
        difference = (half(**batch).loss - model(**batch).loss).abs()
    assert difference < 0.1


@pytest.mark.parametrize("tied", [False, True])
def test_the_vocabulary_can_be_resized(sparse_model, batch, tied, tmp_path):
    model = sparse_model(dtype=torch.float32, tie_word_embeddings=tied)
    before = model(**batch).logits
    model.resize_token_embeddings(70, mean_resizing=False)
    assert model.config.vocab_size == 70
    after = model(**batch).logits
    assert after.shape[-1] == 70
    torch.testing.assert_close(after[..., :61], before)
    model.save_pretrained(tmp_path)
    assert_same_weights(FlanMoEForConditionalGeneration.from_pretrained(tmp_path), model)
    assert model.generate(torch.tensor([[65, 66]]), max_new_tokens=2).shape[0] == 1


def test_two_models_from_one_seed_are_equal():
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(FlanMoEForConditionalGeneration(flan_moe_config("flan-moe-tiny")))
    assert_same_weights(*models)


def test_a_model_is_pickled_whole(sparse_model, batch):
    """As ``torch.save`` and processes that are spawned do it."""
    model = sparse_model()
    copy = pickle.loads(pickle.dumps(model))
    assert torch.equal(copy(**batch).logits, model(**batch).logits)
    copy.shared.weight.data.zero_()
    assert not torch.equal(copy(**batch).logits, model(**batch).logits)
