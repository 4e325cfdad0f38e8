"""Shared experts: a dense network beside the routed ones."""

import pickle

import pytest
import torch

from flan_moe.experts import Experts, ExpertWeights, SharedExperts, SparseFeedForward, expert_ffn
from flan_moe.routing import RouterConfig, build_router, build_routing

D_MODEL, D_FF, TOKENS = 8, 12, 10


def everyone_to_one_expert():
    return build_routing(
        token_N=torch.arange(TOKENS),
        expert_N=torch.zeros(TOKENS, dtype=torch.int64),
        weight_N=torch.ones(TOKENS),
        num_tokens=TOKENS,
        num_experts=1,
        losses={},
        stats={},
    )


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
@pytest.mark.parametrize("bias", [False, True])
def test_is_one_expert_that_takes_every_token(activation, bias):
    torch.manual_seed(0)
    shared = SharedExperts(D_MODEL, D_FF, activation=activation, bias=bias)
    if bias:
        torch.nn.init.normal_(shared.bi)
        torch.nn.init.normal_(shared.bo)
    x_TD = torch.randn(TOKENS, D_MODEL)
    weights = ExpertWeights(
        *(None if w is None else w[None] for w in (shared.wi, shared.wo, shared.bi, shared.bo))
    )
    expected = expert_ffn(x_TD, everyone_to_one_expert(), weights, activation=activation)
    torch.testing.assert_close(shared(x_TD), expected)


def test_two_shared_experts_are_one_of_twice_the_width():
    torch.manual_seed(0)
    pair = [SharedExperts(D_MODEL, D_FF, activation="swiglu") for _ in range(2)]
    both = SharedExperts(D_MODEL, 2 * D_FF, activation="swiglu")
    with torch.no_grad():
        halves = [half.wi.chunk(2, dim=1) for half in pair]
        both.wi.copy_(torch.cat([halves[0][0], halves[1][0], halves[0][1], halves[1][1]], dim=1))
        both.wo.copy_(torch.cat([half.wo for half in pair]))
    x_TD = torch.randn(TOKENS, D_MODEL)
    torch.testing.assert_close(both(x_TD), pair[0](x_TD) + pair[1](x_TD))


def test_the_gate_is_one_factor_per_token():
    torch.manual_seed(0)
    plain = SharedExperts(D_MODEL, D_FF)
    gated = SharedExperts(D_MODEL, D_FF, gated_output=True)
    gated.load_state_dict(plain.state_dict() | {"gate": torch.randn(D_MODEL)})
    x_TD = torch.randn(TOKENS, D_MODEL)
    factor_T = torch.sigmoid(x_TD @ gated.gate)
    torch.testing.assert_close(gated(x_TD), factor_T[:, None] * plain(x_TD))


def test_a_layer_adds_it_to_every_token_dropped_ones_included():
    torch.manual_seed(0)
    router = build_router(
        RouterConfig(num_experts=4, capacity_factor=0.25, min_capacity=1), D_MODEL
    )
    layer = SparseFeedForward(router, Experts(4, D_MODEL, D_FF), SharedExperts(D_MODEL, D_FF))
    x_TD = torch.randn(TOKENS, D_MODEL)
    y_TD, routing = layer(x_TD)
    dropped = routing.token_offsets.diff() == 0
    assert dropped.any()
    torch.testing.assert_close(y_TD[dropped], layer.shared(x_TD)[dropped])
    torch.testing.assert_close(y_TD, layer.experts(x_TD, routing) + layer.shared(x_TD))


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    shared = SharedExperts(D_MODEL, D_FF, dropout=0.5)
    x_TD = torch.randn(TOKENS, D_MODEL)
    assert not torch.equal(shared(x_TD), shared(x_TD))
    shared.eval()
    assert torch.equal(shared(x_TD), shared(x_TD))


def test_what_does_not_fit_is_refused():
    router = build_router(RouterConfig(num_experts=4), D_MODEL)
    with pytest.raises(ValueError, match="shared experts are of width 9, the experts of width 8"):
        SparseFeedForward(router, Experts(4, D_MODEL, D_FF), SharedExperts(9, D_FF))
    with pytest.raises(ValueError, match="d_ff=0: expected an integer of at least 1"):
        SharedExperts(D_MODEL, 0)
    with pytest.raises(ValueError, match="dropout=2"):
        SharedExperts(D_MODEL, D_FF, dropout=2)


def test_a_layer_with_shared_experts_can_be_pickled():
    # As `torch.save(module)` and the start of worker processes do.
    torch.manual_seed(0)
    layer = SparseFeedForward(
        build_router(RouterConfig(num_experts=4), D_MODEL),
        Experts(4, D_MODEL, D_FF),
        SharedExperts(D_MODEL, D_FF, gated_output=True),
    )
    x_TD = torch.randn(TOKENS, D_MODEL)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x_TD)[0], layer(x_TD)[0])
