"""Sharded safetensors into a model that is built without memory, on several devices."""

import importlib.util

import pytest
import torch

from flan_moe.model import FlanMoEForConditionalGeneration

needs_accelerate = pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None,
    reason="device maps are those of accelerate, which is not installed",
)


@pytest.fixture
def sharded(sparse_model, tmp_path):
    model = sparse_model(dtype=torch.float32)
    model.save_pretrained(tmp_path / "saved", max_shard_size="100KB")
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1
    return model, tmp_path / "saved"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shards_load_in_the_dtype_that_is_asked_for(sharded, batch, dtype):
    model, path = sharded
    loaded = FlanMoEForConditionalGeneration.from_pretrained(
        path, low_cpu_mem_usage=True, dtype=dtype
    )
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert not any(p.is_meta for p in [*loaded.parameters(), *loaded.buffers()])
    expected = model.to(dtype)(**batch).logits
    assert torch.equal(loaded(**batch).logits, expected)


def test_a_model_without_memory_has_the_shapes_of_one_with(sparse_config, sparse_model):
    with torch.device("meta"):
        empty = FlanMoEForConditionalGeneration(sparse_config())
    assert all(p.is_meta for p in empty.parameters())
    full = sparse_model()
    assert {n: p.shape for n, p in empty.named_parameters()} == {
        n: p.shape for n, p in full.named_parameters()
    }


@needs_accelerate
@pytest.mark.parametrize("decoder", ["cpu", "disk"])
def test_a_device_map_places_whole_blocks(sharded, batch, tmp_path, decoder):
    model, path = sharded
    loaded = FlanMoEForConditionalGeneration.from_pretrained(
        path,
        device_map={"shared": "cpu", "lm_head": "cpu", "encoder": "cpu", "decoder": decoder},
        offload_folder=tmp_path / "offload",
    )
    assert any(p.is_meta for p in loaded.decoder.parameters()) == (decoder == "disk")
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    ids = {name: batch[name] for name in ("input_ids", "attention_mask")}
    arguments = {**ids, "max_new_tokens": 4, "no_repeat_ngram_size": 1}
    assert torch.equal(loaded.generate(**arguments), model.generate(**arguments))


@needs_accelerate
def test_an_automatic_device_map_never_splits_a_block(sharded, batch):
    from accelerate import infer_auto_device_map

    model, path = sharded
    sizes = {"cpu": 200_000, "disk": 10**9}  # about half of the model
    placed = infer_auto_device_map(
        model, max_memory=sizes, no_split_module_classes=model._no_split_modules
    )
    assert set(placed.values()) == {"cpu", "disk"}
    layers = [name for name in placed if ".layers." in name]
    assert layers
    assert all(len(name.split(".")) == 3 for name in layers), layers
    loaded = FlanMoEForConditionalGeneration.from_pretrained(path, device_map="auto")
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
