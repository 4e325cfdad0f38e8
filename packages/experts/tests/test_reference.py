"""The reference backend is the specification: checked against formulas and finite differences."""

import dataclasses

import pytest
import torch

from flan_moe.experts import ACTIVATIONS, ExpertWeights, expert_ffn
from flan_moe.routing import RouterConfig, build_router

D_MODEL, D_FF, EXPERTS = 3, 4, 3


def make_weights(activation, *, biases=False, dtype=torch.float64):
    h_width = 2 * D_FF if ACTIVATIONS[activation].gated else D_FF
    return ExpertWeights(
        torch.randn(EXPERTS, D_MODEL, h_width, dtype=dtype),
        torch.randn(EXPERTS, D_FF, D_MODEL, dtype=dtype),
        torch.randn(EXPERTS, h_width, dtype=dtype) if biases else None,
        torch.randn(EXPERTS, D_MODEL, dtype=dtype) if biases else None,
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


@pytest.mark.parametrize(
    ("activation", "biases"),
    [*((activation, True) for activation in ACTIVATIONS), ("relu", False), ("geglu", False)],
    ids=[*ACTIVATIONS, "relu, no bias", "geglu, no bias"],
)
@pytest.mark.parametrize("backend", ["reference", "grouped"])
def test_gradients_equal_finite_differences(backend, activation, biases):
    torch.manual_seed(0)
    routing, weights = make_routing(8), make_weights(activation, biases=biases)
    x_TD = torch.randn(8, D_MODEL, dtype=torch.float64)
    row_weight_R = routing.row_weight_R.double()
    scale_E = torch.randn(EXPERTS, dtype=torch.float64)

    def run(x_TD, row_weight_R, scale_E, *weights):
        live = dataclasses.replace(routing, row_weight_R=row_weight_R)
        return expert_ffn(
            x_TD,
            live,
            ExpertWeights(*weights),
            activation=activation,
            backend=backend,
            scale_E=scale_E,
        )

    given = [w for w in weights if w is not None]
    inputs = [t.requires_grad_() for t in (x_TD, row_weight_R, scale_E, *given)]
    assert torch.autograd.gradcheck(run, inputs)
    if backend == "reference":
        assert torch.autograd.gradgradcheck(run, inputs)


def test_grouped_refuses_double_backward_instead_of_returning_a_wrong_one():
    torch.manual_seed(0)
    weights, routing = make_weights("relu"), make_routing(12)
    x_TD = torch.randn(12, D_MODEL, dtype=torch.float64, requires_grad=True)
    y_TD = expert_ffn(x_TD, routing, weights, activation="relu", backend="grouped")
    (dx_TD,) = torch.autograd.grad(y_TD.square().sum(), x_TD, create_graph=True)
    with pytest.raises(RuntimeError, match="but no autograd formula was registered"):
        dx_TD.sum().backward()


@pytest.mark.parametrize("backend", ["reference", "grouped"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_one_row_equals_the_formula(backend, activation):
    torch.manual_seed(1)
    weights, routing = make_weights(activation, biases=True), make_routing(12)
    x_TD = torch.randn(12, D_MODEL, dtype=torch.float64)
    scale_E = torch.tensor([1.0, -2.0, 0.5])
    y_TD = expert_ffn(
        x_TD,
        routing,
        weights._replace(bi_EH=None),
        activation=activation,
        backend=backend,
        scale_E=scale_E,
    )

    tanh_gelu, gelu, silu = torch.nn.GELU(approximate="tanh"), torch.nn.GELU(), torch.nn.SiLU()

    def gated(act):
        return lambda x, wi: act(x @ wi[:, :D_FF]) * (x @ wi[:, D_FF:])

    formula = {
        "relu": lambda x, wi: (x @ wi).clamp(min=0),
        "relu2": lambda x, wi: (x @ wi).clamp(min=0) ** 2,
        "silu": lambda x, wi: silu(x @ wi),
        "gelu": lambda x, wi: tanh_gelu(x @ wi),
        "gelu_exact": lambda x, wi: gelu(x @ wi),
        "reglu": gated(lambda g: g.clamp(min=0)),
        "geglu": gated(tanh_gelu),
        "geglu_exact": gated(gelu),
        "swiglu": gated(silu),
    }[activation]
    for token in range(12):
        expected_D = torch.zeros(D_MODEL, dtype=torch.float64)
        start, end = routing.token_offsets[token : token + 2].tolist()
        for row in routing.token_row_R[start:end].tolist():
            expert = int((routing.expert_offsets <= row).sum()) - 1
            a_F = formula(x_TD[token], weights.wi_EDH[expert])
            out_D = a_F @ weights.wo_EFD[expert] + weights.bo_ED[expert]
            expected_D += routing.row_weight_R[row] * scale_E[expert] * out_D
        torch.testing.assert_close(y_TD[token], expected_D)
        assert end > start or torch.equal(y_TD[token], torch.zeros_like(y_TD[token]))
