"""Counts against allocated models and torch's FLOP counter."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flan_moe.model import (
    PRESETS,
    FlanMoEConfig,
    FlanMoEForConditionalGeneration,
    count_parameters,
    dense_twin,
    flan_moe_config,
    flops_per_token,
)

TOP_2 = {"name": "top_k", "num_experts": 4, "top_k": 2, "capacity_factor": None}
EXPERT_CHOICE = {"name": "expert_choice", "num_experts": 4, "capacity_factor": 1.5}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("extra", "expert_d_ff"), [(False, None), (True, None), (True, 20)])
def test_counts_equal_an_allocated_model(sparse_config, tied, extra, expert_d_ff):
    config = sparse_config(
        tie_word_embeddings=tied,
        encoder_router=EXPERT_CHOICE,
        extra_feed_forward=extra,
        expert_d_ff=expert_d_ff,
    )
    model = FlanMoEForConditionalGeneration(config)
    count = count_parameters(config)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert count.total == sum(sizes.values())
    assert count.router == sum(size for name, size in sizes.items() if "router" in name)
    assert count.embedding == (1 if tied else 2) * 61 * 32
    experts = {
        stack: sum(s for n, s in sizes.items() if n.startswith(stack) and "experts" in n)
        for stack in ("encoder", "decoder")
    }
    idle = experts["encoder"] * (1 - 1.5 / 4) + experts["decoder"] * (1 - 2 / 4)
    assert count.active == round(count.total - count.embedding - idle)


def measured_flops(config, encoder_length, decoder_length=0):
    """Of four rows; without decoder tokens, of the encoder alone."""
    torch.manual_seed(0)
    model = FlanMoEForConditionalGeneration(config).train()  # capacity as in training
    ids = torch.randint(2, config.vocab_size, (4, encoder_length))
    labels = torch.randint(2, config.vocab_size, (4, decoder_length))
    # the counter sees the products inside attention only in its plain implementation
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=labels) if decoder_length else model.encoder(ids)
    return counter.get_total_flops()


@pytest.mark.parametrize("activation", ["geglu", "relu"])
@pytest.mark.parametrize(
    "routers",
    [
        pytest.param({"encoder_router": TOP_2, "decoder_router": TOP_2}, id="top-2"),
        pytest.param({"encoder_router": EXPERT_CHOICE, "decoder_router": TOP_2}, id="ec"),
        pytest.param(
            {"encoder_router": TOP_2, "decoder_router": TOP_2, "extra_feed_forward": True},
            id="extra network",
        ),
        pytest.param({}, id="dense"),
    ],
)
def test_flops_equal_those_that_torch_counts(routers, activation):
    config = FlanMoEConfig(
        vocab_size=97,
        d_model=48,
        d_kv=16,
        d_ff=80,
        num_layers=4,
        num_decoder_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        activation=activation,
        **routers,
    )
    flops = flops_per_token(config, encoder_length=32, decoder_length=16)
    expected = measured_flops(config, 32, 16)
    assert 4 * (32 * flops.encoder + 16 * flops.decoder) == pytest.approx(expected, rel=0.02)
    assert 4 * 32 * flops.encoder_stack == pytest.approx(measured_flops(config, 32), rel=0.02)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name.startswith("flan")])
def test_the_dense_twin_costs_the_same(preset):
    """Within 1.2 percent: the twin has no router, which with 256 experts is 1.1 percent."""
    config = flan_moe_config(preset)
    twin = dense_twin(config)
    assert twin.encoder_router is None
    assert twin.decoder_router is None
    sparse, dense = flops_per_token(config), flops_per_token(twin)
    assert dense.encoder == pytest.approx(sparse.encoder, rel=0.012)
    assert dense.decoder == pytest.approx(sparse.decoder, rel=0.012)
    assert count_parameters(twin).total < count_parameters(config).total


def test_the_dense_twin_differs_in_width_only(sparse_config):
    config = sparse_config(encoder_router=EXPERT_CHOICE)
    twin = dense_twin(config)
    extra = dense_twin(sparse_config(encoder_router=EXPERT_CHOICE, extra_feed_forward=True))
    assert extra.dense_ff_widths == {"encoder": [48, 120, 48, 120], "decoder": [48, 144]}
    assert not extra.extra_feed_forward
    assert twin.dense_ff_widths == {"encoder": [48, 72, 48, 72], "decoder": [48, 96]}
    changed = {"encoder_router", "decoder_router", "dense_ff_widths"}
    before, after = config.to_dict(), twin.to_dict()
    assert {key for key in before if before[key] != after[key]} == changed
    assert dense_twin(twin).to_dict() == after


def test_the_dense_twin_costs_the_same_when_run(sparse_config):
    config = sparse_config(
        encoder_router=EXPERT_CHOICE, decoder_router=TOP_2, extra_feed_forward=True
    )
    sparse = measured_flops(config, 32, 16)
    assert measured_flops(dense_twin(config), 32, 16) == pytest.approx(sparse, rel=0.02)
