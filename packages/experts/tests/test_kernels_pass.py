"""The triton backend, forward and backward, against a loop over experts in float64."""

import pytest
import torch
from kernel_oracle import (
    DTYPES,
    TOLERANCE,
    check_close,
    kernels_run,
    make_case,
    oracle,
    relative_error,
    run,
    small_tiles,
)

from flan_moe.experts.activations import ACTIVATIONS

pytestmark = kernels_run

KINDS = ("relu", "gelu", "swiglu")
"""Kept by its output, kept by its input, and gated."""


def check(case, **options):
    dtype = case.options.matmul_dtype
    y_TD, gradients = run(case, **options)
    expected_TD, expected = oracle(case)
    assert y_TD.dtype == case.x_TD.dtype
    assert relative_error(y_TD, expected_TD) < TOLERANCE[dtype]
    check_close(gradients, expected, dtype)
    for gradient, of in zip(gradients, (case.x_TD, *case.weights, case.row_weight_R), strict=True):
        assert gradient is None or gradient.dtype == of.dtype
    silent_T = case.index.token_offsets.diff() == 0
    assert bool((y_TD[silent_T] == 0).all())
    assert bool((gradients.x_TD[silent_T] == 0).all())
    assert bool((gradients.row_weight_R[case.true_rows :] == 0).all())
    return silent_T


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation):
    sizes = {"tokens": 12, "width": 20, "hidden": 24, "experts": 3}
    check(make_case(activation, bias=True, dropout=0.3, **sizes), configs=small_tiles())


@pytest.mark.parametrize("activation", KINDS)
def test_by_pointers_with_dropout_and_biases(activation):
    check(make_case(activation, bias=True, dropout=0.3), configs=small_tiles())


@pytest.mark.parametrize("activation", KINDS)
def test_by_descriptors(activation):
    case = make_case(activation, width=48, hidden=80, seed=1)
    check(case, configs=small_tiles(tma=True, rows=32))


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("activation", ["relu2", "gelu", "swiglu"])
def test_half_precision(activation, dtype):
    check(make_case(activation, dtype=dtype, bias=True, dropout=0.1), configs=small_tiles())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_configurations_of_the_table(dtype):
    check(make_case("geglu", dtype=dtype, dropout=0.1))


def test_expert_choice_gives_tokens_many_rows_or_none():
    case = make_case("geglu", expert_choice=True, keep=1.1, bias=True)
    silent_T = check(case, configs=small_tiles())
    assert int(case.index.token_offsets.diff().max()) > 2
    assert bool(silent_T.any())


def test_float32_weights_under_half_precision_products():
    """As under autocast: weights and gradients keep float32, only operands are rounded."""
    case = make_case("geglu", bias=True)
    half = case.options.__class__(
        activation=case.options.activation, dropout=None, matmul_dtype=torch.float16
    )
    check(case._replace(options=half), configs=small_tiles())


@pytest.mark.parametrize(
    "sizes",
    [
        {"tokens": 1, "experts": 1, "keep": 1.1},
        {"tokens": 1, "experts": 3, "keep": 1.1},
        {"tokens": 40, "experts": 1, "keep": 1.1},
        {"tokens": 2, "experts": 64, "keep": 1.1, "choices": 1},
        {"tokens": 5, "experts": 3, "keep": 0.0},
    ],
    ids=["one of each", "one token", "one expert", "mostly empty experts", "no rows"],
)
def test_degenerate_routings(sizes):
    check(make_case("geglu", width=20, hidden=24, bias=True, **sizes), configs=small_tiles())


@pytest.mark.parametrize("probability", [0.0, 1.0])
@pytest.mark.parametrize("activation", ["relu2", "geglu"])
def test_dropout_of_nothing_and_of_everything(activation, probability):
    case = make_case(activation, tokens=9, width=20, hidden=24, dropout=probability)
    check(case, configs=small_tiles())
