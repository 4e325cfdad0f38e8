"""Examples-proportional mixing, against worked examples and as properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_moe.data.mixing.rates import mixture_weights, proportional_rates, whole_shares

counts = st.lists(st.integers(1, 100_000), min_size=1, max_size=40)


def test_rates_are_capped_counts():
    rates = proportional_rates([100, 50_000, 30_000], [30_000, 30_000, 30_000])
    np.testing.assert_allclose(rates, np.array([100, 30_000, 30_000]) / 60_100)


@settings(deadline=None)
@given(counts, st.integers(0, 10_000))
def test_whole_shares_sum_to_the_total_and_stay_within_one(sizes, total):
    shares = proportional_rates(sizes, [30_000] * len(sizes))
    quotas = whole_shares(shares, total)
    assert quotas.sum() == total
    assert np.all(np.abs(quotas - shares * total) < 1 + 1e-6)


def test_weights_are_normalised_and_zero_leaves_a_mixture_out():
    assert mixture_weights({"a": 10, "b": 30}, None) == {"a": 0.25, "b": 0.75}
    assert mixture_weights({"a": 10, "b": 30}, {"b": 1, "a": 3.0}) == {"a": 0.75, "b": 0.25}
    assert mixture_weights({"a": 10, "b": 30}, {"a": 0, "b": 5}) == {"b": 1.0}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 1, "c": 1}, r"weights\.c: no such mixture; expected \['a', 'b'\]"),
        ({"a": 1}, r"weights\.b: missing"),
        ({"a": 1, "b": -1}, r"weights\.b is -1"),
        ({"a": 1, "b": float("nan")}, r"weights\.b is nan"),
        ({"a": 1, "b": True}, r"weights\.b is True"),
        ({"a": 1, "b": "2"}, r"weights\.b is '2'"),
        ({"a": 0, "b": 0}, "all are 0"),
        ({"a": 1e308, "b": 1e308}, "their sum overflows"),
    ],
)
def test_bad_weights_are_named(weights, message):
    with pytest.raises(ValueError, match=message):
        mixture_weights({"a": 10, "b": 30}, weights)
