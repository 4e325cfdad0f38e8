"""The modules, and the checks that name what does not fit."""

import copy
import importlib.util
import subprocess
import sys

import pytest
import torch

from flan_moe.experts import BACKENDS, Experts, ExpertWeights, SparseFeedForward, expert_ffn
from flan_moe.routing import Router, RouterConfig

D_MODEL, D_FF, EXPERTS = 8, 12, 4


def make_layer(*, activation="geglu", **options):
    torch.manual_seed(0)
    router = Router(RouterConfig(num_experts=EXPERTS), D_MODEL)
    return SparseFeedForward(
        router, Experts(EXPERTS, D_MODEL, D_FF, activation=activation, **options)
    )


def test_layer_is_router_then_experts_and_returns_the_routing():
    layer = make_layer().eval()
    x_TD = torch.randn(10, D_MODEL)
    y_TD, routing = layer(x_TD)
    assert torch.equal(y_TD, layer.experts(x_TD, layer.router(x_TD)))
    assert set(routing.losses) == {"balance", "z"}
    sequence_T = torch.zeros(10, dtype=torch.int32)
    forced, replay = layer(x_TD, sequence_T=sequence_T, forced_experts=torch.full((10, 1), 2))
    assert replay.stats["expert_load_E"].tolist() == [0, 0, 10, 0]
    assert not torch.equal(forced, y_TD)


def test_training_the_layer_moves_router_and_experts():
    layer = make_layer(dropout=0.1)
    before = copy.deepcopy(layer.state_dict())
    y_TD, routing = layer(torch.randn(32, D_MODEL))
    (y_TD.square().mean() + 0.01 * routing.losses["balance"]).backward()
    torch.optim.SGD(layer.parameters(), lr=1.0).step()
    assert set(before) == {"router.weight", "experts.wi", "experts.wo"}
    for name, value in layer.state_dict().items():
        assert not torch.equal(value, before[name]), name


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "triton"])
def test_backends_agree_on_the_layer(backend):
    layer = make_layer(dropout=0.2)
    exact = copy.deepcopy(layer)
    exact.experts.backend = "reference"
    layer.experts.backend = backend
    x_TD = torch.randn(20, D_MODEL)
    torch.manual_seed(1)
    y_TD, _ = layer(x_TD)
    torch.manual_seed(1)
    torch.testing.assert_close(y_TD, exact(x_TD)[0])


def test_initialisation_is_that_of_t5_for_every_expert():
    torch.manual_seed(0)
    experts = Experts(3, 256, 512, activation="geglu")
    for factor in (1.0, 0.5):
        experts.reset_parameters(factor)
        for wi_DH, wo_FD in zip(experts.wi.detach(), experts.wo.detach(), strict=True):
            assert float(wi_DH.std()) == pytest.approx(factor * 256**-0.5, rel=0.02)
            assert float(wo_FD.std()) == pytest.approx(factor * 512**-0.5, rel=0.02)


def test_meta_device_allocates_nothing():
    experts = Experts(64, 1024, 4096, device="meta")
    assert experts.wi.shape == (64, 1024, 8192)
    assert experts.wi.is_meta
    assert experts.wo.is_meta


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_experts": 0}, "num_experts=0: expected an integer of at least 1"),
        ({"d_ff": 0}, "d_ff=0"),
        ({"activation": "gated-gelu"}, "activation='gated-gelu'.*'relu', 'relu2'"),
        ({"dropout": 1.5}, r"dropout=1.5.*\[0, 1\]"),
        ({"backend": "triton2"}, "backend='triton2'.*'auto', 'reference', 'grouped'"),
    ],
)
def test_impossible_experts_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Experts(**{"num_experts": 2, "d_model": 4, "d_ff": 4, **arguments})


def test_router_and_experts_must_match():
    router = Router(RouterConfig(num_experts=5), D_MODEL)
    with pytest.raises(ValueError, match="router is for 5 experts of width 8, the experts are 4"):
        SparseFeedForward(router, Experts(EXPERTS, D_MODEL, D_FF))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_TD": torch.randn(2, 5, D_MODEL)}, r"expected x \(T, D\).*\(2, 5, 8\)"),
        ({"x_TD": torch.randn(9, D_MODEL)}, "routing is for 10 tokens, x has 9"),
        ({"x_TD": torch.randn(10, 7)}, r"expected wi \(4, 7, 24\)"),
        ({"activation": "relu"}, r"activation 'relu'.*expected wi \(4, 8, 12\)"),
        ({"wo": torch.randn(4, 12, 9)}, r"expected.*wo \(4, 12, 8\); got.*wo \(4, 12, 9\)"),
        ({"experts": 3}, "routing is for 4 experts, the weights are of 3"),
        (
            {"x_TD": torch.randn(10, D_MODEL).bfloat16()},
            "dtypes must agree: x torch.bfloat16, wi torch.float32",
        ),
        (
            {"x_TD": torch.ones(10, D_MODEL, dtype=torch.int32)},
            "must be floating point: x torch.int32",
        ),
        ({"x_TD": torch.randn(10, D_MODEL, device="meta")}, "one device: x on meta"),
        ({"dropout": -0.1}, "dropout=-0.1"),
        ({"backend": "fast"}, "backend='fast'"),
        ({"activation": "tanh"}, "activation='tanh'"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, message):
    layer = make_layer()
    experts = change.pop("experts", EXPERTS)
    weights = ExpertWeights(
        layer.experts.wi[:experts], change.pop("wo", layer.experts.wo[:experts])
    )
    arguments = {
        "x_TD": torch.randn(10, D_MODEL),
        "routing": layer.router(torch.randn(10, D_MODEL)),
        "activation": "geglu",
        **change,
    }
    with pytest.raises(ValueError, match=message):
        expert_ffn(weights=weights, **arguments)


def test_the_triton_backend_says_what_it_needs():
    layer = make_layer(backend="triton")
    if importlib.util.find_spec("triton") is None:
        with pytest.raises(ModuleNotFoundError, match=r"install flan-moe-experts\[triton\]"):
            layer(torch.randn(10, D_MODEL))
    else:
        with pytest.raises(ValueError, match="needs tensors on a CUDA device, not on cpu"):
            layer(torch.randn(10, D_MODEL))


def test_importing_the_package_does_not_import_triton():
    code = (
        "import sys, flan_moe.experts; "
        "assert not {'triton', 'transformers', 'xformers'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
