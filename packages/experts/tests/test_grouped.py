"""The grouped backend against the float64 reference: O(1) inputs, relative norm errors."""

import dataclasses

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from flan_moe.experts import ACTIVATIONS, Experts, ExpertWeights, SparseFeedForward, expert_ffn
from flan_moe.routing import Router, RouterConfig, build_routing

D_MODEL, D_FF, EXPERTS = 24, 40, 6
ROUTERS = {
    "switch with drops": RouterConfig(num_experts=EXPERTS, capacity_factor=0.6, min_capacity=1),
    "top-3": RouterConfig(name="top_k", num_experts=EXPERTS, top_k=3, capacity_factor=None),
    "expert choice": RouterConfig(name="expert_choice", num_experts=EXPERTS, min_capacity=1),
}


def make_weights(activation, dtype=torch.float32, *, biases=False):
    """Weights that keep activations and outputs of order one for x of order one."""
    h_width = 2 * D_FF if ACTIVATIONS[activation].gated else D_FF
    return ExpertWeights(
        (torch.randn(EXPERTS, D_MODEL, h_width) * D_MODEL**-0.5).to(dtype),
        (torch.randn(EXPERTS, D_FF, D_MODEL) * 2 * D_FF**-0.5).to(dtype),
        torch.randn(EXPERTS, h_width).to(dtype) if biases else None,
        torch.randn(EXPERTS, D_MODEL).to(dtype) if biases else None,
    )


def mapped(weights, change):
    return ExpertWeights(*(None if w is None else change(w) for w in weights))


def make_routing(config, x_TD):
    router = Router(config, D_MODEL)
    torch.nn.init.normal_(router.weight)
    with torch.no_grad():
        return router(x_TD)


def routing_by_hand(pairs, tokens, experts=EXPERTS):
    """A routing from (token, expert) pairs with random weights."""
    return build_routing(
        token_N=torch.tensor([t for t, _ in pairs], dtype=torch.int64),
        expert_N=torch.tensor([e for _, e in pairs], dtype=torch.int64),
        weight_N=torch.rand(len(pairs)) + 0.5,
        num_tokens=tokens,
        num_experts=experts,
        losses={},
        stats={},
    )


def forward_and_gradients(x_TD, routing, weights, dy_TD, **options):
    """Output and the gradients of x, wi, wo and the row weights, by name."""
    x_TD = x_TD.detach().requires_grad_()
    weights = mapped(weights, lambda w: w.detach().requires_grad_())
    routing = dataclasses.replace(
        routing, row_weight_R=routing.row_weight_R.detach().requires_grad_()
    )
    y_TD = expert_ffn(x_TD, routing, weights, **options)
    y_TD.backward(dy_TD.to(y_TD.dtype))
    gradients = {
        "y": y_TD.detach(),
        "dx": x_TD.grad,
        "dwi": weights.wi_EDH.grad,
        "dwo": weights.wo_EFD.grad,
        "dweight": routing.row_weight_R.grad,
    }
    if weights.bi_EH is not None:
        gradients |= {"dbi": weights.bi_EH.grad, "dbo": weights.bo_ED.grad}
    return gradients


def in_float64(x_TD, routing, weights, dy_TD, **options):
    """`forward_and_gradients` of the reference, in float64 throughout."""
    exact = dataclasses.replace(routing, row_weight_R=routing.row_weight_R.double())
    weights = mapped(weights, torch.Tensor.double)
    return forward_and_gradients(
        x_TD.double(), exact, weights, dy_TD.double(), backend="reference", **options
    )


def assert_relative(ours, exact, bound):
    for name, value in exact.items():
        assert ours[name].isfinite().all(), name
        # Per expert for weight gradients, so that a wrong slice cannot hide behind the others.
        parts = (
            zip(ours[name], value, strict=True)
            if name in ("dwi", "dwo", "dbi", "dbo")
            else [(ours[name], value)]
        )
        for got, want in parts:
            error = (got.double() - want).norm()
            assert error <= bound * want.norm(), (name, float(error / want.norm()))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("biases", [False, True], ids=["no bias", "biases"])
@pytest.mark.parametrize("tokens", [70, 700], ids=["one chunk", "chunks"])
def test_float32_equals_float64_reference(router, activation, dropout, biases, tokens):
    torch.manual_seed(0)
    x_TD, dy_TD = torch.randn(2, tokens, D_MODEL).unbind()
    weights = make_weights(activation, biases=biases)
    routing = make_routing(ROUTERS[router], x_TD)
    options = {"activation": activation, "dropout": dropout, "training": True}
    torch.manual_seed(5)
    exact = in_float64(x_TD, routing, weights, dy_TD, **options)
    assert float(exact["y"].std()) > 0.1
    torch.manual_seed(5)
    ours = forward_and_gradients(x_TD, routing, weights, dy_TD, backend="grouped", **options)
    assert_relative(ours, exact, 2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_sixteen_bits_are_within_their_rounding_of_float64(dtype, activation, dropout):
    torch.manual_seed(0)
    x_TD, dy_TD = torch.randn(2, 70, D_MODEL).to(dtype).unbind()
    weights = make_weights(activation, dtype)
    routing = make_routing(ROUTERS["top-3"], x_TD)
    options = {"activation": activation, "dropout": dropout, "training": True}
    torch.manual_seed(5)
    exact = in_float64(x_TD, routing, weights, dy_TD, **options)
    torch.manual_seed(5)
    ours = forward_and_gradients(x_TD, routing, weights, dy_TD, backend="grouped", **options)
    assert {name: value.dtype for name, value in ours.items()} == {
        "y": dtype,
        "dx": dtype,
        "dwi": dtype,
        "dwo": dtype,
        "dweight": torch.float32,
    }
    assert_relative(ours, exact, 2e-2)


@pytest.mark.parametrize("backend", ["reference", "grouped"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_autocast_multiplies_in_bfloat16_and_returns_the_dtype_of_x(backend, dropout):
    torch.manual_seed(0)
    x_TD, dy_TD = torch.randn(2, 70, D_MODEL).unbind()
    weights, routing = make_weights("geglu"), make_routing(ROUTERS["top-3"], x_TD)
    options = {"activation": "geglu", "dropout": dropout, "training": True}
    torch.manual_seed(5)
    exact = in_float64(x_TD, routing, weights, dy_TD, **options)
    torch.manual_seed(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = forward_and_gradients(x_TD, routing, weights, dy_TD, backend=backend, **options)
    assert all(value.dtype == torch.float32 for value in ours.values())
    assert_relative(ours, exact, 2e-2)
    assert (ours["y"].double() - exact["y"]).norm() > 1e-4 * exact["y"].norm()  # did round


@pytest.mark.parametrize("backend", ["reference", "grouped"])
@pytest.mark.parametrize(
    ("x_dtype", "weight_dtype"),
    [
        (torch.float32, torch.bfloat16),
        (torch.float64, torch.float32),
        (torch.float32, torch.float64),
    ],
)
def test_autocast_takes_weights_of_another_dtype(backend, x_dtype, weight_dtype):
    torch.manual_seed(0)
    x_TD, dy_TD = torch.randn(2, 70, D_MODEL, dtype=x_dtype).unbind()
    weights = make_weights("geglu", weight_dtype, biases=True)
    routing = make_routing(ROUTERS["top-3"], x_TD.float())
    exact = in_float64(x_TD, routing, weights, dy_TD, activation="geglu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = forward_and_gradients(
            x_TD, routing, weights, dy_TD, activation="geglu", backend=backend
        )
    assert ours["y"].dtype == ours["dx"].dtype == x_dtype
    assert ours["dwi"].dtype == weight_dtype
    assert_relative(ours, exact, 2e-2)


@pytest.mark.parametrize(
    ("tokens", "pairs"),
    [
        (0, []),
        (5, []),
        (1, [(0, 3)]),
        (7, [(t, 2) for t in range(7)]),
        (7, [(3, e) for e in range(EXPERTS)]),
        (9, [(8, 0), (0, 5), (8, 5)]),
    ],
    ids=["no tokens", "all dropped", "one token", "one expert", "one token to all", "few"],
)
@pytest.mark.parametrize("activation", ["relu", "geglu"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_edge_routings(tokens, pairs, activation, dropout):
    torch.manual_seed(0)
    x_TD, dy_TD = torch.randn(2, tokens, D_MODEL).unbind()
    weights, routing = make_weights(activation), routing_by_hand(pairs, tokens)
    options = {"activation": activation, "dropout": dropout, "training": True}
    torch.manual_seed(5)
    exact = in_float64(x_TD, routing, weights, dy_TD, **options)
    torch.manual_seed(5)
    ours = forward_and_gradients(x_TD, routing, weights, dy_TD, backend="grouped", **options)
    assert_relative(ours, exact, 2e-6)
    idle = sorted(set(range(tokens)) - {t for t, _ in pairs})
    for name in ("y", "dx"):
        assert torch.equal(ours[name][idle], torch.zeros(len(idle), D_MODEL))
    unused = sorted(set(range(EXPERTS)) - {e for _, e in pairs})
    for name in ("dwi", "dwo"):
        assert torch.equal(ours[name][unused], torch.zeros_like(ours[name][unused]))


def test_permuting_experts_permutes_their_gradients_and_leaves_the_output():
    torch.manual_seed(0)
    pairs = [(t, (3 * t + k) % EXPERTS) for t in range(20) for k in range(2)]
    permutation = torch.randperm(EXPERTS)  # old expert e becomes new expert permutation[e]
    x_TD, dy_TD = torch.randn(2, 20, D_MODEL).unbind()
    weights = make_weights("swiglu")
    inverse = permutation.argsort()
    moved = mapped(weights, lambda w: w[inverse])
    torch.manual_seed(1)
    before = forward_and_gradients(
        x_TD, routing_by_hand(pairs, 20), weights, dy_TD, activation="swiglu"
    )
    torch.manual_seed(1)  # the same weight for the same pair
    routing = routing_by_hand([(t, int(permutation[e])) for t, e in pairs], 20)
    after = forward_and_gradients(x_TD, routing, moved, dy_TD, activation="swiglu")
    torch.testing.assert_close(after["y"], before["y"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(after["dx"], before["dx"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(after["dwi"], before["dwi"][inverse], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(after["dwo"], before["dwo"][inverse], rtol=1e-5, atol=1e-5)


def test_equal_experts_with_weights_that_sum_to_one_are_one_dense_layer():
    torch.manual_seed(0)
    x_TD = torch.randn(30, D_MODEL)
    wi_1DH, wo_1FD = (w[:1] for w in make_weights("geglu")[:2])
    weights = ExpertWeights(wi_1DH.expand(EXPERTS, -1, -1), wo_1FD.expand(EXPERTS, -1, -1))
    config = RouterConfig(
        name="top_k", num_experts=EXPERTS, top_k=2, capacity_factor=None, renormalise="before_drop"
    )
    y_TD = expert_ffn(x_TD, make_routing(config, x_TD), weights, activation="geglu")
    dense_TD = ACTIVATIONS["geglu"].forward(x_TD @ wi_1DH[0]) @ wo_1FD[0]
    torch.testing.assert_close(y_TD, dense_TD, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "grouped"])
def test_rows_past_the_true_count_are_never_read(backend):
    # What a router on a GPU hands over: arrays as long as the bound, garbage in the tail.
    torch.manual_seed(0)
    x_TD, dy_TD = torch.randn(2, 9, D_MODEL).unbind()
    weights = make_weights("relu")
    routing = routing_by_hand([(8, 0), (0, 5), (8, 5), (4, 2)], 9)
    tail = torch.full((3,), 2**31 - 1, dtype=torch.int32)
    padded = dataclasses.replace(
        routing,
        row_token_R=torch.cat([routing.row_token_R, tail]),
        token_row_R=torch.cat([routing.token_row_R, tail]),
        row_weight_R=torch.cat([routing.row_weight_R, torch.full((3,), float("nan"))]),
    )
    options = {"activation": "relu", "backend": backend, "dropout": 0.2, "training": True}
    torch.manual_seed(5)
    clean = forward_and_gradients(x_TD, routing, weights, dy_TD, **options)
    torch.manual_seed(5)
    ours = forward_and_gradients(x_TD, padded, weights, dy_TD, **options)
    assert torch.equal(ours.pop("dweight"), torch.cat([clean.pop("dweight"), torch.zeros(3)]))
    for name, value in clean.items():
        assert torch.equal(ours[name], value), name


@pytest.mark.parametrize("activation", ["relu", "geglu"])
def test_repeats_and_recomputation_are_bitwise_equal(activation):
    torch.manual_seed(0)
    layer = SparseFeedForward(
        Router(ROUTERS["switch with drops"], D_MODEL),
        Experts(EXPERTS, D_MODEL, D_FF, activation=activation, dropout=0.3),
    )
    x_TD, dy_TD = torch.randn(2, 64, D_MODEL).unbind()

    def run(call):
        torch.manual_seed(7)
        layer.zero_grad()
        y_TD = call(x_TD.requires_grad_())
        y_TD.backward(dy_TD)
        return [y_TD.detach(), *(p.grad.clone() for p in layer.parameters())]

    first = run(lambda x: layer(x)[0])
    again = run(lambda x: layer(x)[0])
    recomputed = run(lambda x: checkpoint(lambda x: layer(x)[0], x, use_reentrant=False))
    for a, b, c in zip(first, again, recomputed, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.parametrize(
    "wanted", [("x",), ("wi",), ("wo",), ("weight",), ("wi", "wo"), ("x", "weight")]
)
@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_frozen_parts_change_no_other_gradient(wanted, activation):
    torch.manual_seed(0)
    x_TD, dy_TD = torch.randn(2, 40, D_MODEL).unbind()
    weights, routing = make_weights(activation), make_routing(ROUTERS["top-3"], x_TD)
    options = {"activation": activation, "dropout": 0.3, "training": True}
    torch.manual_seed(5)
    full = forward_and_gradients(x_TD, routing, weights, dy_TD, **options)

    leaves = {
        "x": x_TD.clone(),
        "wi": weights.wi_EDH.clone(),
        "wo": weights.wo_EFD.clone(),
        "weight": routing.row_weight_R.clone(),
    }
    for name in wanted:
        leaves[name].requires_grad_()
    live = dataclasses.replace(routing, row_weight_R=leaves["weight"])
    torch.manual_seed(5)
    y_TD = expert_ffn(leaves["x"], live, ExpertWeights(leaves["wi"], leaves["wo"]), **options)
    y_TD.backward(dy_TD)
    for name, leaf in leaves.items():
        if name in wanted:
            assert torch.equal(leaf.grad, full["d" + name]), name
        else:
            assert leaf.grad is None


@pytest.mark.parametrize(
    ("activation", "kept_width"), [("relu", D_FF), ("gelu", D_FF), ("geglu", 2 * D_FF)]
)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_saves_only_tokens_preactivation_and_indices(activation, kept_width, dropout):
    torch.manual_seed(0)
    tokens = 50
    x_TD = torch.randn(tokens, D_MODEL, requires_grad=True)
    weights = mapped(make_weights(activation), torch.Tensor.requires_grad_)
    routing = make_routing(ROUTERS["top-3"], x_TD.detach())
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        expert_ffn(x_TD, routing, weights, activation=activation, dropout=dropout, training=True)
    inputs = {t.untyped_storage().data_ptr() for t in (x_TD, *weights[:2])}
    new = [t for t in saved if t.untyped_storage().data_ptr() not in inputs]
    floats = sum(t.numel() for t in new if t.is_floating_point())
    indices = sum(t.numel() for t in new if not t.is_floating_point())
    rows = 3 * tokens
    assert floats == rows * kept_width + rows  # the pre-activation, and a weight per row
    assert indices == 2 * rows + (tokens + 1) + (EXPERTS + 1) + (dropout > 0)


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("accumulate", [False, True], ids=["set", "add"])
def test_every_number_of_rows_is_multiplied_right(threads, accumulate):
    """The order of products depends on an expert's rows, and their strips on the threads."""
    rows_E = [1, 2, 6, 7, 47, 48]
    pairs = [(sum(rows_E[:e]) + i, e) for e, rows in enumerate(rows_E) for i in range(rows)]
    torch.manual_seed(0)
    routing = routing_by_hand(pairs, len(pairs))
    weights, x_TD, dy_TD = make_weights("relu"), *torch.randn(2, len(pairs), D_MODEL)
    before = torch.get_num_threads()
    experts = Experts(EXPERTS, D_MODEL, D_FF, activation="relu")
    experts.wi.data, experts.wo.data = weights.wi_EDH, weights.wo_EFD
    torch.set_num_threads(threads)
    try:
        for first in (True, False) if accumulate else (True,):
            experts.reserve_gradients(accumulate=not first)
            x_leaf_TD = x_TD.clone().requires_grad_()
            experts(x_leaf_TD, routing).backward(dy_TD)
    finally:
        torch.set_num_threads(before)
    exact = in_float64(x_TD, routing, weights, dy_TD, activation="relu")
    times = 2 if accumulate else 1
    ours = {"dx": x_leaf_TD.grad, "dwi": experts.wi.grad, "dwo": experts.wo.grad}
    expected = {"dx": exact["dx"], "dwi": times * exact["dwi"], "dwo": times * exact["dwo"]}
    assert_relative(ours, expected, 2e-6)


@pytest.mark.parametrize("activation", ["relu", "geglu"])
def test_a_second_backward_through_a_retained_graph_is_the_same(activation):
    torch.manual_seed(0)
    x_TD = torch.randn(40, D_MODEL)
    weights = mapped(make_weights(activation), torch.Tensor.requires_grad_)
    routing = make_routing(ROUTERS["top-3"], x_TD)
    y_TD = expert_ffn(x_TD, routing, weights, activation=activation, dropout=0.3, training=True)
    first = torch.autograd.grad(y_TD.sum(), weights[:2], retain_graph=True)
    second = torch.autograd.grad(y_TD.sum(), weights[:2])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", ["reference", "grouped"])
@pytest.mark.parametrize(
    ("outputs", "row_weights", "total"),
    [
        ([256, 1, 1, 1, 1], [1, 1, 1, 1, 1], 260.0),  # in bfloat16 256 + 1 is 256
        ([128, -128], [1 + 2**-9, 1], 0.25),  # in bfloat16 the first weight is 1
    ],
)
def test_rows_are_weighted_and_summed_in_float32(backend, outputs, row_weights, total):
    experts = len(outputs)
    routing = dataclasses.replace(
        routing_by_hand([(0, e) for e in range(experts)], 1, experts=experts),
        row_weight_R=torch.tensor(row_weights, dtype=torch.float32),
    )
    weights = ExpertWeights(
        torch.ones(experts, 1, 1).bfloat16(), torch.tensor(outputs).reshape(-1, 1, 1).bfloat16()
    )
    x_TD = torch.ones(1, 1).bfloat16()
    y_TD = expert_ffn(x_TD, routing, weights, activation="relu", backend=backend)
    assert y_TD.item() == total


def test_few_tokens_touch_only_the_experts_they_use():
    # Weights of experts without rows are NaN: reading one of them would show.
    torch.manual_seed(0)
    weights = make_weights("geglu")
    for w in weights[:2]:
        w[[0, 1, 3, 4]] = float("nan")
    x_TD, dy_TD = torch.randn(2, 2, D_MODEL).unbind()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = forward_and_gradients(
            x_TD, routing_by_hand([(0, 2), (1, 5)], 2), weights, dy_TD, activation="geglu"
        )
    assert all(value.isfinite().all() for value in ours.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_cuda_equals_float64_reference_with_a_padded_routing(activation):
    torch.manual_seed(0)
    x_TD, dy_TD = torch.randn(2, 70, D_MODEL).cuda().unbind()
    weights = mapped(make_weights(activation), torch.Tensor.cuda)
    router = Router(ROUTERS["switch with drops"], D_MODEL).cuda()
    torch.nn.init.normal_(router.weight)
    with torch.no_grad():
        routing = router(x_TD)
    options = {"activation": activation, "dropout": 0.3, "training": True}
    torch.manual_seed(5)
    exact = in_float64(x_TD, routing, weights, dy_TD, **options)
    for _ in range(2):  # the second step finds dirty memory
        torch.manual_seed(5)
        ours = forward_and_gradients(x_TD, routing, weights, dy_TD, backend="grouped", **options)
        assert_relative(ours, exact, 1e-5)
