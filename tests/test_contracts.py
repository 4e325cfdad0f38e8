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


@pytest.fixture(scope="module")
def mini_flan(tmp_path_factory):
    """A small data directory, as a user would build it."""
    from flan_moe.data import BuildOptions, build_data_directory, mini_flan_sources

    folder = tmp_path_factory.mktemp("contracts") / "mini-flan"
    sources = mini_flan_sources(examples=6, validation=0, evaluation=2, seed=0)
    options = BuildOptions(
        name="mini-flan", source="tests", vocab_size=400, max_input_tokens=128, max_target_tokens=48
    )
    build_data_directory(folder, sources, options, report=lambda line: None)
    return folder


@pytest.mark.parametrize("rows", [None, 24], ids=["rows as needed", "blank rows"])
def test_a_loaders_packed_batch_has_the_logits_and_gradients_of_its_examples(mini_flan, rows):
    """Data -> model: what a real loader packs into a row does not attend across segments."""
    from flan_moe.data import dataloader, read_manifest

    size = read_manifest(mini_flan).vocab_size
    torch.manual_seed(0)
    config = tiny_config(vocab_size=size, dropout_rate=0.0, balance_coef=0.0)
    model = FlanMoEForConditionalGeneration(config).eval()
    budget = {"max_input_tokens": 256, "max_target_tokens": 96}
    batch = next(iter(dataloader(mini_flan, batch_size=24, rows=rows, **budget)))
    assert len(batch.pop("task_ids")) == 24
    last_B = batch["encoder_segments"].amax(1).tolist()
    assert sum(last_B) == 24, "every example is there"
    assert max(last_B) > 2, "the case must exercise several in a row"
    assert (0 in last_B) == (rows is not None), "the case must exercise rows of padding"

    together = model(**batch)
    together.loss.backward()
    packed = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    count = int((batch["labels"] != -100).sum())
    for row, last in enumerate(last_B):
        for segment in range(1, last + 1):
            source = batch["encoder_segments"][row] == segment
            target = batch["decoder_segments"][row] == segment
            alone = model(
                input_ids=batch["input_ids"][row][source][None],
                labels=batch["labels"][row][target][None],
            )
            torch.testing.assert_close(
                together.logits[row][target], alone.logits[0], rtol=1e-5, atol=1e-5
            )
            (alone.loss * int(target.sum()) / count).backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(packed[name], weight.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_the_dense_twin_is_trained_and_evaluated_through_the_same_interface():
    sparse, dense = tiny_config(), dense_twin(tiny_config())
    outputs = []
    for config in (sparse, dense):
        model = FlanMoEForConditionalGeneration(config)
        outputs.append(model(input_ids=torch.tensor([[3, 4, 1]]), labels=torch.tensor([[5, 1]])))
    assert [len(o.routings) for o in outputs] == [2, 0]
    assert set(outputs[0].aux_losses) == {"balance", "z"}
    assert not outputs[1].aux_losses
