"""The memory that the model package states is what the train package's optimizer holds."""

import pytest
import torch

from flan_moe.model import FlanMoEConfig, FlanMoEForConditionalGeneration, training_memory
from flan_moe.train.adafactor import ExpertAdafactor


@pytest.mark.parametrize("extra", [False, True])
def test_adafactor_with_sides_around_the_limit(extra):
    """128 x 144 matrices are factored, alone and in stacks; a router of 4 is not."""
    router = {"name": "top_k", "num_experts": 4}
    config = FlanMoEConfig(
        vocab_size=130,
        d_model=128,
        d_kv=16,
        d_ff=144,
        num_layers=2,
        num_heads=7,  # inner width 112: attention is not factored either
        encoder_router=router,
        decoder_router=router,
        extra_feed_forward=extra,
    )
    model = FlanMoEForConditionalGeneration(config)
    optimizer = ExpertAdafactor(model.parameters(), lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    held = {"factored": 0, "whole": 0}
    for state in optimizer.state.values():
        tensors = [value for key, value in state.items() if key != "step"]
        kind = "factored" if len(tensors) == 2 else "whole"
        held[kind] += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert all(held.values())
    assert training_memory(config, "adafactor").optimizer == sum(held.values())
