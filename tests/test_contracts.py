"""The surfaces between packages, as one package uses another's real objects."""

from itertools import pairwise

import pytest
import torch

from flan_moe.experts import Experts, SparseFeedForward
from flan_moe.model import FlanMoEConfig, FlanMoEForConditionalGeneration, dense_twin
from flan_moe.routing import RouterConfig, build_router

ROUTERS = {
    "switch": RouterConfig(name="switch", num_experts=4, capacity_factor=1.0, min_capacity=1),
    "top_k": RouterConfig(name="top_k", num_experts=4, top_k=2, capacity_factor=1.0),
    "expert_choice": RouterConfig(name="expert_choice", num_experts=4, capacity_factor=1.5),
}


@pytest.mark.parametrize("name", ROUTERS)
def test_experts_do_exactly_the_rows_that_a_router_lists(name):
    """Routing -> experts: y_t is the sum over its rows, and nothing for a token without rows."""
    torch.manual_seed(0)
    router = build_router(ROUTERS[name], 16)
    torch.nn.init.normal_(router.weight)  # uneven enough that capacity drops tokens
    layer = SparseFeedForward(router, Experts(4, 16, 24, activation="geglu")).train()
    x_TD = torch.randn(30, 16)
    y_TD, routing = layer(x_TD)
    routing.validate()

    expected_TD = torch.zeros(30, 16, dtype=torch.float64)
    wi, wo = layer.experts.wi.double(), layer.experts.wo.double()
    for expert, (start, end) in enumerate(pairwise(routing.expert_offsets.tolist())):
        for row in range(start, end):
            token = int(routing.row_token_R[row])
            gate, linear = (x_TD[token].double() @ wi[expert]).chunk(2)
            hidden = torch.nn.functional.gelu(gate, approximate="tanh") * linear
            expected_TD[token] += routing.row_weight_R[row].double() * (hidden @ wo[expert])
    torch.testing.assert_close(y_TD.double(), expected_TD, rtol=1e-4, atol=1e-5)
    unserved = routing.token_offsets.diff() == 0
    assert name == "expert_choice" or unserved.any(), "the case must exercise dropping"
    assert (y_TD[unserved] == 0).all()


def tiny_config(**changes) -> FlanMoEConfig:
    router = {"name": "top_k", "num_experts": 4, "top_k": 2, "capacity_factor": None}
    sizes = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2}
    return FlanMoEConfig(
        **{**sizes, "num_layers": 2, "encoder_router": router, "decoder_router": router, **changes}
    )


def test_a_packed_batch_trains_like_its_examples_one_by_one():
    """Data -> model: no attention, routing or loss crosses a segment (dropless, no dropout)."""
    torch.manual_seed(0)
    model = FlanMoEForConditionalGeneration(tiny_config(dropout_rate=0.0, balance_coef=0.0)).train()
    pairs = [([5, 6, 7, 1], [8, 9, 1]), ([10, 11, 1], [12, 1]), ([13, 14, 15, 16, 1], [17, 1])]
    packed = {
        "input_ids": torch.tensor([[5, 6, 7, 1, 10, 11, 1], [13, 14, 15, 16, 1, 0, 0]]),
        "labels": torch.tensor([[8, 9, 1, 12, 1], [17, 1, -100, -100, -100]]),
        "encoder_segments": torch.tensor([[1, 1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 1, 0, 0]]),
        "decoder_segments": torch.tensor([[1, 1, 1, 2, 2], [1, 1, 0, 0, 0]]),
    }
    together = model(**packed)
    total, count = 0.0, 0
    for source, target in pairs:
        alone = model(input_ids=torch.tensor([source]), labels=torch.tensor([target]))
        total, count = total + alone.loss.double() * len(target), count + len(target)
    torch.testing.assert_close(together.loss.double(), total / count, rtol=1e-5, atol=1e-6)


def test_the_dense_twin_is_trained_and_evaluated_through_the_same_interface():
    sparse, dense = tiny_config(), dense_twin(tiny_config())
    outputs = []
    for config in (sparse, dense):
        model = FlanMoEForConditionalGeneration(config)
        outputs.append(model(input_ids=torch.tensor([[3, 4, 1]]), labels=torch.tensor([[5, 1]])))
    assert [len(o.routings) for o in outputs] == [2, 0]
    assert set(outputs[0].aux_losses) == {"balance", "z"}
    assert not outputs[1].aux_losses
