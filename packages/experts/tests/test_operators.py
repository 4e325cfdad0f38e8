"""The operators as torch's machinery sees them: tracing, compilation, checkpoints, autocast."""

import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)
from torch.utils.flop_counter import FlopCounterMode

from flan_moe.experts import Experts, MainGrads, SharedExperts, SparseFeedForward, expert_ffn
from flan_moe.experts.backend import Wanted
from flan_moe.experts.ops import expert_ffn_backward, expert_ffn_forward
from flan_moe.routing import RouterConfig, build_router

D_MODEL, D_FF, EXPERTS, TOKENS = 8, 12, 4, 10


def make_layer(*, activation="geglu", capacity=None, shared=False, **options):
    torch.manual_seed(0)
    config = RouterConfig(name="top_k", num_experts=EXPERTS, top_k=2, capacity_factor=capacity)
    return SparseFeedForward(
        build_router(config, D_MODEL),
        Experts(EXPERTS, D_MODEL, D_FF, activation=activation, **options),
        SharedExperts(D_MODEL, D_FF, activation=activation) if shared else None,
    )


def operator_inputs(activation, *, biases, dropout, main_grads=None, requires_grad=True):
    layer = make_layer(activation=activation, bias=biases)
    x_TD = torch.randn(TOKENS, D_MODEL, requires_grad=requires_grad)
    with torch.no_grad():
        routing = layer.router(x_TD)
    weights = [w if w is None else w.detach() for w in layer.experts.weights]
    weights = [w if w is None else w.requires_grad_(requires_grad) for w in weights]
    main_grads = main_grads or MainGrads()
    return (
        x_TD,
        *weights,
        routing.row_weight_R.clone().requires_grad_(requires_grad),
        routing.row_token_R,
        routing.expert_offsets,
        routing.token_offsets,
        routing.token_row_R,
        torch.tensor([3]) if dropout else None,
        *main_grads,
        0.4 if dropout else 0.0,
        activation,
        "grouped",
        torch.float32,
    )


@pytest.mark.parametrize(
    ("activation", "biases", "dropout"),
    [("relu", False, True), ("relu2", True, True), ("geglu", True, False), ("geglu", False, True)],
)
def test_forward_passes_opcheck(activation, biases, dropout):
    inputs = operator_inputs(activation, biases=biases, dropout=dropout)
    torch.library.opcheck(expert_ffn_forward, (*inputs, True))


@pytest.mark.parametrize(
    ("activation", "main", "wanted"),
    [
        ("relu", "returned", Wanted(*[True] * 6)),
        ("geglu", "added", Wanted(*[True] * 6)),
        ("relu", "overwritten", Wanted(*[True] * 6)),
        ("geglu", "returned", Wanted(True, False, True, False, False, False)),
    ],
)
def test_backward_passes_opcheck(activation, main, wanted):
    inputs = operator_inputs(activation, biases=True, dropout=True, requires_grad=False)
    if main != "returned":
        buffers = MainGrads(inputs[1].clone(), inputs[2].clone(), main == "added")
        inputs = (*inputs[:11], *buffers, *inputs[14:])
    y_TD, kept = expert_ffn_forward(*inputs, True)
    torch.library.opcheck(
        expert_ffn_backward, (torch.randn_like(y_TD), kept, *inputs, list(wanted))
    )


def test_results_have_the_strides_that_the_compiler_expects_even_of_transposed_inputs():
    # Inductor asserts them; opcheck does not look.
    inputs = list(operator_inputs("geglu", biases=True, dropout=False, requires_grad=False))
    for i, tensor in enumerate(inputs[:5]):
        inputs[i] = tensor.mT.contiguous().mT
    assert not any(tensor.is_contiguous() for tensor in inputs[:5])
    inputs[5] = inputs[5].repeat_interleave(2)[::2]

    def strides(to_tensor=lambda tensor: tensor):
        here = [to_tensor(i) if isinstance(i, torch.Tensor) else i for i in inputs]
        y_TD, kept = expert_ffn_forward(*here, True)
        dy_TD = torch.empty_like(here[0])
        gradients = expert_ffn_backward(dy_TD, kept, *here, [True] * 6)
        return [tensor.stride() for tensor in (y_TD, kept, *gradients)]

    with FakeTensorMode() as mode:
        expected = strides(mode.from_tensor)
    assert strides() == expected


def forward_and_gradients(layer, x_TD, run):
    layer.zero_grad()
    x_TD = x_TD.detach().requires_grad_()
    torch.manual_seed(9)
    y_TD = run(x_TD)
    y_TD.sin().sum().backward()
    return [y_TD.detach(), x_TD.grad, *(p.grad.clone() for p in layer.parameters())]


@pytest.mark.parametrize("activation", ["relu", "geglu"])
@pytest.mark.parametrize("capacity", [None, 0.7], ids=["dropless", "drops"])
def test_a_layer_compiles_into_one_graph_with_the_same_results(activation, capacity):
    layer = make_layer(
        activation=activation, capacity=capacity, shared=True, bias=True, output_scale=True
    )
    x_TD = torch.randn(TOKENS, D_MODEL)
    compiled = torch.compile(lambda x: layer(x)[0], fullgraph=True, backend="aot_eager")
    eager = forward_and_gradients(layer, x_TD, lambda x: layer(x)[0])
    for ours, expected in zip(forward_and_gradients(layer, x_TD, compiled), eager, strict=True):
        torch.testing.assert_close(ours, expected)


def test_dropout_in_a_compiled_graph_draws_anew_at_each_call():
    layer = make_layer(dropout=0.5)
    compiled = torch.compile(lambda x: layer(x)[0], fullgraph=True, backend="aot_eager")
    x_TD = torch.randn(TOKENS, D_MODEL)
    torch.manual_seed(0)
    first, second = compiled(x_TD), compiled(x_TD)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(compiled(x_TD), first)


@pytest.mark.parametrize("activation", ["relu", "geglu"])
def test_checkpointing_recomputes_the_same_bits(activation):
    layer = make_layer(activation=activation, dropout=0.3, shared=True)
    x_TD = torch.randn(TOKENS, D_MODEL)

    def keep_experts(context, op, *args, **kwargs):
        is_ours = op is torch.ops.flan_moe.expert_ffn_forward.default
        return CheckpointPolicy.MUST_SAVE if is_ours else CheckpointPolicy.PREFER_RECOMPUTE

    def selective():
        return create_selective_checkpoint_contexts(keep_experts)

    plain = forward_and_gradients(layer, x_TD, lambda x: layer(x)[0])
    for options in ({}, {"context_fn": selective}):
        recomputed = forward_and_gradients(
            layer,
            x_TD,
            lambda x, options=options: checkpoint(
                lambda x: layer(x)[0], x, use_reentrant=False, **options
            ),
        )
        assert all(torch.equal(a, b) for a, b in zip(recomputed, plain, strict=True))


def test_fake_tensors_pass_without_data():
    inputs = operator_inputs("geglu", biases=True, dropout=True, requires_grad=False)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [mode.from_tensor(i) if isinstance(i, torch.Tensor) else i for i in inputs]
        y_TD, kept = expert_ffn_forward(*fake, True)
    assert y_TD.shape == (TOKENS, D_MODEL)
    assert kept.shape == (2 * TOKENS, 2 * D_FF)


def test_compilation_keeps_the_autocast_rule():
    layer = make_layer()
    x_TD = torch.randn(TOKENS, D_MODEL)
    routing = layer.router(x_TD)
    compiled = torch.compile(
        lambda x: layer.experts(x, routing), fullgraph=True, backend="aot_eager"
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        eager_TD, ours_TD = layer.experts(x_TD, routing), compiled(x_TD)
    assert ours_TD.dtype == torch.float32
    assert torch.equal(ours_TD, eager_TD)
    assert not torch.equal(ours_TD, layer.experts(x_TD, routing))  # it did round


def test_an_output_without_gradients_keeps_nothing_and_equals_the_other():
    layer = make_layer(activation="swiglu", bias=True)
    x_TD = torch.randn(TOKENS, D_MODEL)
    with torch.no_grad():
        evaluated_TD = layer(x_TD)[0]
    assert torch.equal(evaluated_TD, layer(x_TD)[0])
    inputs = operator_inputs("swiglu", biases=True, dropout=False, requires_grad=False)
    assert expert_ffn_forward(*inputs, False)[1].numel() == 0


def test_the_scale_multiplies_an_experts_output_and_is_trained():
    layer = make_layer(output_scale=True)
    x_TD = torch.randn(TOKENS, D_MODEL)
    plain = layer(x_TD)[0]
    with torch.no_grad():
        layer.experts.scale.fill_(3.0)
    torch.testing.assert_close(layer(x_TD)[0], 3.0 * plain)
    layer(x_TD)[0].sum().backward()
    gradient_E = layer.experts.scale.grad.clone()
    layer.zero_grad()
    routing = layer.router(x_TD)
    padded = dataclasses.replace(
        routing, row_weight_R=torch.cat([routing.row_weight_R, torch.full((3,), float("nan"))])
    )
    tail = torch.full((3,), 2**31 - 1, dtype=torch.int32)
    padded = dataclasses.replace(
        padded,
        row_token_R=torch.cat([routing.row_token_R, tail]),
        token_row_R=torch.cat([routing.token_row_R, tail]),
    )
    y_TD = layer.experts(x_TD, padded)
    torch.testing.assert_close(y_TD, 3.0 * plain)
    y_TD.sum().backward()
    torch.testing.assert_close(layer.experts.scale.grad, gradient_E)
    assert layer.router.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("scale_E", "message"),
    [
        (torch.ones(3), r"scale of shape \(3,\): expected \(4,\)"),
        (torch.ones(4, device="meta"), "expected floating point on cpu, got torch.float32 on meta"),
        (torch.ones(4, dtype=torch.int64), "floating point on cpu, got torch.int64 on cpu"),
    ],
)
def test_a_scale_that_does_not_fit_is_refused(scale_E, message):
    layer = make_layer()
    x_TD = torch.randn(TOKENS, D_MODEL)
    with pytest.raises(ValueError, match=message):
        expert_ffn(
            x_TD,
            layer.router(x_TD),
            layer.experts.weights,
            activation="geglu",
            scale_E=scale_E,
        )


@pytest.mark.parametrize("frozen", [False, True])
def test_forward_mode_and_second_derivatives_are_refused(frozen):
    layer = make_layer().requires_grad_(not frozen)
    x_TD = torch.randn(TOKENS, D_MODEL)
    with torch.no_grad():
        routing = layer.router(x_TD)
    with pytest.raises(NotImplementedError, match="no forward-mode differentiation"):
        torch.func.jvp(lambda x: layer.experts(x, routing), (x_TD,), (torch.ones_like(x_TD),))
    with forward_ad.dual_level():
        dual_TD = forward_ad.make_dual(x_TD, torch.ones_like(x_TD))
        with pytest.raises(NotImplementedError, match="no forward-mode differentiation"):
            layer.experts(dual_TD, routing)
        layer.experts.backend = "reference"
        assert forward_ad.unpack_dual(layer.experts(dual_TD, routing)).tangent.norm() > 0
        layer.experts.backend = "grouped"
    x_TD.requires_grad_()
    (gradient,) = torch.autograd.grad(
        layer.experts(x_TD, routing).sin().sum(), x_TD, create_graph=True
    )
    with pytest.raises(RuntimeError, match="no autograd formula"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("frozen", [(), ("wi", "wo")])
def test_torchs_counter_sees_the_products(frozen):
    layer = make_layer(activation="geglu")
    for name in frozen:
        getattr(layer.experts, name).requires_grad_(False)
    x_TD = torch.randn(TOKENS, D_MODEL, requires_grad=True)
    with torch.no_grad():
        routing = layer.router(x_TD)
    with FlopCounterMode(display=False) as counter:
        layer.experts(x_TD, routing).sum().backward()
    forward = 2 * (2 * TOKENS) * D_MODEL * (2 * D_FF + D_FF)
    assert counter.get_total_flops() == forward + (1 if frozen else 2) * forward
