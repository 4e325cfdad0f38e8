"""A head of its own does not vanish when a checkpoint is loaded as a tied one."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from flan_moe.model import FlanMoEForConditionalGeneration

load = FlanMoEForConditionalGeneration.from_pretrained


def change_config(path, **values):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize("shards", ["1GB", "100KB"])
@pytest.mark.parametrize("way", ["argument", "file"])
def test_tying_a_checkpoint_that_has_a_head_is_refused(sparse_model, tmp_path, shards, way):
    sparse_model(dtype=torch.float32).save_pretrained(tmp_path, max_shard_size=shards)
    arguments = {}
    if way == "file":
        change_config(tmp_path, tie_word_embeddings=True)
    else:
        arguments["tie_word_embeddings"] = True
    with pytest.raises(ValueError, match=r"holds a lm_head.weight that differs from shared.weight"):
        load(tmp_path, **arguments)


def test_a_head_that_is_the_embedding_is_nothing_to_lose(sparse_model, tmp_path, batch):
    """Other programs may write a tied weight twice."""
    model = sparse_model(dtype=torch.float32, tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights["shared.weight"].clone()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = load(tmp_path)
    assert loaded.lm_head.weight is loaded.shared.weight
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_untying_a_tied_checkpoint_reports_the_head_as_missing(sparse_model, tmp_path):
    sparse_model(dtype=torch.float32, tie_word_embeddings=True).save_pretrained(tmp_path)
    loaded, info = load(tmp_path, tie_word_embeddings=False, output_loading_info=True)
    assert set(info["missing_keys"]) == {"lm_head.weight"}
    assert not torch.equal(loaded.lm_head.weight, loaded.shared.weight)


@pytest.mark.parametrize("tied", [False, True])
def test_tying_again_changes_nothing(sparse_model, batch, tied):
    model = sparse_model(tie_word_embeddings=tied)
    before = model(**batch).logits
    model.tie_weights()
    assert (model.lm_head.weight is model.shared.weight) == tied
    assert torch.equal(model(**batch).logits, before)
