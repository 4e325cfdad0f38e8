"""The reference backend is the specification: checked against formulas and finite differences."""

import dataclasses

import pytest
import torch

from flan_moe.experts import ACTIVATIONS, ExpertWeights, expert_ffn
from flan_moe.routing import RouterConfig, build_router

D_MODEL, D_FF, EXPERTS = 3, 4, 3


def make_weights(activation, dtype=torch.float64):
    h_width = 2 * D_FF if ACTIVATIONS[activation].gated else D_FF
    return ExpertWeights(
        torch.randn(EXPERTS, D_MODEL, h_width, dtype=dtype),
        torch.randn(EXPERTS, D_FF, D_MODEL, dtype=dtype),
    )


def make_routing(tokens):
    """Top-2 with drops: tokens with no, one and two rows, detached from its router."""
    config = RouterConfig(
        name="top_k", num_experts=EXPERTS, top_k=2, capacity_factor=0.9, min_capacity=1
    )
    router = build_router(config, D_MODEL)
    torch.nn.init.normal_(router.weight)
    with torch.no_grad():
        routing = router(torch.randn(tokens, D_MODEL))
    assert set(routing.token_offsets.diff().tolist()) == {0, 1, 2}
    return routing


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("backend", ["reference", "grouped"])
def test_gradients_equal_finite_differences(backend, activation):
    torch.manual_seed(0)
    weights, routing = make_weights(activation), make_routing(12)
    x_TD = torch.randn(12, D_MODEL, dtype=torch.float64)
    row_weight_R = routing.row_weight_R.double()

    def run(x_TD, wi_EDH, wo_EFD, row_weight_R):
        live = dataclasses.replace(routing, row_weight_R=row_weight_R)
        return expert_ffn(
            x_TD, live, ExpertWeights(wi_EDH, wo_EFD), activation=activation, backend=backend
        )

    inputs = [t.requires_grad_() for t in (x_TD, *weights, row_weight_R)]
    assert torch.autograd.gradcheck(run, inputs)
    if backend == "reference":
        assert torch.autograd.gradgradcheck(run, inputs)


def test_grouped_refuses_double_backward_instead_of_returning_a_wrong_one():
    torch.manual_seed(0)
    weights, routing = make_weights("relu"), make_routing(12)
    x_TD = torch.randn(12, D_MODEL, dtype=torch.float64, requires_grad=True)
    y_TD = expert_ffn(x_TD, routing, weights, activation="relu", backend="grouped")
    (dx_TD,) = torch.autograd.grad(y_TD.square().sum(), x_TD, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx_TD.sum().backward()


@pytest.mark.parametrize("backend", ["reference", "grouped"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_one_row_equals_the_formula(backend, activation):
    torch.manual_seed(1)
    weights, routing = make_weights(activation), make_routing(12)
    x_TD = torch.randn(12, D_MODEL, dtype=torch.float64)
    y_TD = expert_ffn(x_TD, routing, weights, activation=activation, backend=backend)

    gelu = torch.nn.GELU(approximate="tanh")
    silu = torch.nn.SiLU()
    formula = {
        "relu": lambda x, wi: (x @ wi).clamp(min=0),
        "gelu": lambda x, wi: gelu(x @ wi),
        "geglu": lambda x, wi: gelu(x @ wi[:, :D_FF]) * (x @ wi[:, D_FF:]),
        "swiglu": lambda x, wi: silu(x @ wi[:, :D_FF]) * (x @ wi[:, D_FF:]),
    }[activation]
    for token in range(12):
        expected_D = torch.zeros(D_MODEL, dtype=torch.float64)
        start, end = routing.token_offsets[token : token + 2].tolist()
        for row in routing.token_row_R[start:end].tolist():
            expert = int((routing.expert_offsets <= row).sum()) - 1
            a_F = formula(x_TD[token], weights.wi_EDH[expert])
            expected_D += routing.row_weight_R[row] * (a_F @ weights.wo_EFD[expert])
        torch.testing.assert_close(y_TD[token], expected_D)
        assert end > start or torch.equal(y_TD[token], torch.zeros_like(y_TD[token]))
