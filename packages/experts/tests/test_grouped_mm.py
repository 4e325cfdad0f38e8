"""The products by torch's grouped_mm, on the CPU, against the products one by one."""

import pytest
import torch
import torch.nn.functional as F

from flan_moe.experts import ACTIVATIONS, Experts, MainGrads, grouped, grouped_mm
from flan_moe.experts.activations import get_activation
from flan_moe.experts.backend import Options, RowIndex, Wanted
from flan_moe.experts.dropout import Dropout
from flan_moe.routing import RouterConfig, build_router

D_MODEL, D_FF, EXPERTS, TOKENS = 16, 24, 5, 40
needs_grouped_mm = pytest.mark.skipif(
    not grouped_mm.is_available(), reason="this torch has no grouped_mm"
)


def case(activation, *, dropout=False, padding=0):
    """Top-2 with drops and an idle expert, rows of garbage behind it."""
    torch.manual_seed(0)
    experts = Experts(EXPERTS, D_MODEL, D_FF, activation=activation, bias=True)
    torch.nn.init.normal_(experts.bi)
    torch.nn.init.normal_(experts.bo)
    config = RouterConfig(
        name="top_k", num_experts=EXPERTS, top_k=2, capacity_factor=0.9, min_capacity=1
    )
    router = build_router(config, D_MODEL)
    torch.nn.init.normal_(router.weight)
    forced = torch.randn(TOKENS, EXPERTS - 1).topk(2).indices
    x_TD, dy_TD = torch.randn(2, TOKENS, D_MODEL)
    with torch.no_grad():
        routing = router(x_TD, forced_experts=forced)
    assert int(routing.expert_offsets.diff()[-1]) == 0
    tail = torch.full((padding,), 2**31 - 1, dtype=torch.int32)
    index = RowIndex(
        torch.cat([routing.row_token_R, tail]),
        routing.expert_offsets,
        routing.token_offsets,
        torch.cat([routing.token_row_R, tail]),
    )
    row_weight_R = torch.cat([routing.row_weight_R, torch.full((padding,), float("nan"))])
    options = Options(
        activation=get_activation(activation),
        dropout=Dropout(torch.tensor([7]), 0.3) if dropout else None,
        matmul_dtype=torch.float32,
    )
    weights = type(experts.weights)(*(w.detach() for w in experts.weights))
    return x_TD, dy_TD, weights, row_weight_R, index, options


def run(module, case, wanted=None, main_grads=None):
    x_TD, dy_TD, weights, row_weight_R, index, options = case
    y_TD, kept = module.forward(x_TD, weights, row_weight_R, index, options, keep=True)
    gradients = module.backward(
        dy_TD,
        x_TD,
        kept,
        weights,
        row_weight_R,
        index,
        options,
        wanted or Wanted(*[True] * 6),
        main_grads or MainGrads(),
    )
    return [y_TD, *gradients]


@needs_grouped_mm
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dropout", [False, True], ids=["no dropout", "dropout"])
@pytest.mark.parametrize("padding", [0, 9])
def test_equals_the_products_one_by_one(activation, dropout, padding):
    inputs = case(activation, dropout=dropout, padding=padding)
    for ours, expected in zip(run(grouped_mm, inputs), run(grouped, inputs), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@needs_grouped_mm
@pytest.mark.parametrize("padding", [0, 9, 200])
def test_the_last_sum_ends_where_torch_ends_it_on_a_gpu(padding, monkeypatch):
    """At the last row, whatever the last offset says; on CPU that depends on the dtype."""
    sums, embedding_bag = [], F.embedding_bag

    def ends_at_the_last_row(indices, values, offsets, **options):
        sums.append(len(indices))
        assert int(offsets[-1]) == len(indices)
        return embedding_bag(indices, values, offsets, **options)

    inputs = case("geglu", padding=padding)
    expected = run(grouped, inputs)
    monkeypatch.setattr(F, "embedding_bag", ends_at_the_last_row)
    for ours, theirs in zip(run(grouped_mm, inputs), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert sums == [len(inputs[3])] * 4  # y, dbo, dbi, dx


@needs_grouped_mm
@pytest.mark.parametrize("accumulate", [True, False])
def test_buffers_receive_the_weight_gradients(accumulate):
    inputs = case("geglu")
    fresh = run(grouped_mm, inputs)
    buffers = MainGrads(torch.ones_like(fresh[2]), torch.ones_like(fresh[3]), accumulate)
    results = run(grouped_mm, inputs, main_grads=buffers)
    assert results[2] is None
    assert results[3] is None
    torch.testing.assert_close(buffers.wi_EDH, fresh[2] + accumulate)
    torch.testing.assert_close(buffers.wo_EFD, fresh[3] + accumulate)


@needs_grouped_mm
def test_only_what_is_wanted_is_returned():
    inputs = case("geglu")
    everything = run(grouped_mm, inputs)
    wanted = Wanted(True, False, False, False, True, False)
    for is_wanted, ours, expected in zip(
        wanted, run(grouped_mm, inputs, wanted)[1:], everything[1:], strict=True
    ):
        assert torch.equal(ours, expected) if is_wanted else ours is None


@pytest.mark.parametrize(
    ("d_model", "d_ff", "dtype", "fits"),
    [
        (16, 24, torch.bfloat16, True),
        (12, 24, torch.bfloat16, False),
        (16, 20, torch.bfloat16, False),
        (12, 20, torch.float32, True),
        (16, 24, torch.float64, False),
    ],
)
def test_rows_must_be_multiples_of_sixteen_bytes(d_model, d_ff, dtype, fits):
    weights = Experts(2, d_model, d_ff, activation="relu", dtype=dtype).weights
    assert grouped_mm.fits(weights, dtype) is fits
    if fits and grouped_mm.is_available():
        x_RD = torch.randn(4, d_model).to(dtype)
        ends_E = torch.tensor([1, 4], dtype=torch.int32)
        assert F.grouped_mm(x_RD, weights.wi_EDH, offs=ends_E).shape == (4, d_ff)


def test_weights_in_another_dtype_than_the_products_do_not_fit():
    weights = Experts(2, 16, 24).weights
    assert not grouped_mm.fits(weights, torch.bfloat16)
