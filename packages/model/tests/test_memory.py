"""Memory against what is allocated."""

import pytest
import torch

from flan_moe.model import (
    FlanMoEForConditionalGeneration,
    cache_bytes,
    flan_moe_config,
    training_memory,
    weight_bytes,
)

CHOICES = [
    pytest.param({}, id="sparse"),
    pytest.param({"tie_word_embeddings": True, "activation": "relu"}, id="relu tied"),
    pytest.param({"extra_feed_forward": True}, id="extra network"),
    pytest.param({"encoder_router": None, "decoder_router": None}, id="dense"),
]


def bytes_of(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def after_one_step(model, optimizer):
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    states = [
        tensor
        for state in optimizer.state.values()
        for key, tensor in state.items()
        if key != "step"
    ]
    return bytes_of(states)


@pytest.mark.parametrize("options", CHOICES)
def test_adamw_holds_what_is_stated(sparse_config, options):
    config = sparse_config(**options)
    model = FlanMoEForConditionalGeneration(config)
    held = after_one_step(model, torch.optim.AdamW(model.parameters()))
    memory = training_memory(config, "adamw")
    assert memory.weights == bytes_of(model.parameters())
    assert memory.gradients == bytes_of(p.grad for p in model.parameters())
    assert memory.optimizer == held
    assert memory.total == memory.weights + memory.gradients + held


@pytest.mark.parametrize("options", CHOICES)
def test_adafactor_holds_what_is_stated(sparse_config, options):
    """torch's, which factors any matrix."""
    config = sparse_config(**options)
    model = FlanMoEForConditionalGeneration(config)
    held = after_one_step(model, torch.optim.Adafactor(model.parameters()))
    memory = training_memory(config, "adafactor", least_factored_side=1)
    assert memory.optimizer == held
    assert memory.weights == bytes_of(model.parameters())


def test_short_matrices_are_not_factored_by_default(sparse_config):
    config = sparse_config()  # all sides of its matrices are below 128, vocabulary included
    memory = training_memory(config, "adafactor")
    assert memory.optimizer == memory.weights
    factored = training_memory(config, "adafactor", least_factored_side=32)
    assert factored.optimizer < memory.optimizer


def test_weights_to_serve(sparse_config):
    config = sparse_config()
    model = FlanMoEForConditionalGeneration(config)
    assert weight_bytes(config, torch.float32) == bytes_of(model.parameters())
    assert weight_bytes(config, torch.bfloat16) == bytes_of(model.bfloat16().parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_of_a_generation(sparse_config, dtype):
    config = sparse_config(num_layers=4, num_decoder_layers=3)
    model = FlanMoEForConditionalGeneration(config).to(dtype).eval()
    ids = torch.randint(2, 61, (1, 9))
    with torch.no_grad():
        cache = model(input_ids=ids, decoder_input_ids=ids[:, :5], use_cache=True).past_key_values
    held = [
        getattr(layer, name)
        for half in (cache.self_attention_cache, cache.cross_attention_cache)
        for layer in half.layers
        for name in ("keys", "values")
    ]
    assert cache_bytes(config, dtype, encoder_length=9, decoder_length=5) == bytes_of(held)


def test_the_32b_model_needs_terabytes_with_adamw():
    """16 bytes a parameter; Adafactor's factored moments are next to nothing."""
    config = flan_moe_config("flan-st-32b")
    assert training_memory(config, "adamw").total == 16 * 269_104_613_376
    memory = training_memory(config, "adafactor")
    assert memory.total == pytest.approx(8 * 269_104_613_376, rel=2e-4)


def test_unknown_optimizers_are_refused(sparse_config):
    with pytest.raises(ValueError, match="optimizer 'sgd': expected one of 'adamw', 'adafactor'"):
        training_memory(sparse_config(), "sgd")
