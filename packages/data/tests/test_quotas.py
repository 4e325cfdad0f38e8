"""Quotas: whole numbers by share, in one piece and over many."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_moe.data.mixing.quotas import Quotas

sizes = st.lists(st.integers(0, 100_000), min_size=1, max_size=60).filter(any)


def shares_of(numbers):
    return np.array(numbers, float) / sum(numbers)


@settings(deadline=None)
@given(sizes, st.integers(0, 10_000), st.integers(0, 1000), st.integers(0, 2**31))
def test_a_piece_is_exact_and_every_run_of_cells_is_within_one(numbers, length, piece, seed):
    shares = shares_of(numbers)
    counts = Quotas(shares, length, seed=seed).between(piece, piece + 1)
    assert counts.sum() == length
    assert np.all(counts >= 0)
    assert np.all(counts[shares == 0] == 0)
    for size in (1, 2, 5):
        found = np.convolve(counts, np.ones(size), "valid")
        exact = np.convolve(shares * length, np.ones(size), "valid")
        assert np.all(np.abs(found - exact) < 1 + 1e-3)


@settings(deadline=None)
@given(sizes, st.integers(1, 500), st.integers(0, 20), st.integers(0, 20), st.integers(0, 2**31))
def test_many_pieces_at_once_are_the_sum_of_each(numbers, length, begin, more, seed):
    quotas = Quotas(shares_of(numbers), length, seed=seed)
    one_by_one = [quotas.between(p, p + 1) for p in range(begin, begin + more)]
    whole = quotas.between(begin, begin + more)
    np.testing.assert_array_equal(whole, np.sum(one_by_one, axis=0, dtype=int) + 0 * whole)


def test_whole_shares_are_the_same_in_every_piece():
    quotas = Quotas(shares_of([2000] * 7), 14_000, seed=1)
    for piece in range(20):
        assert quotas.between(piece, piece + 1).tolist() == [2000] * 7


@pytest.mark.parametrize("seed", range(5))
def test_a_small_cell_is_met_in_its_share_of_pieces(seed):
    # Exact shares 0.3, 0.9 and 8.8 of 10 samples; largest remainders would never meet the first.
    shares = np.array([0.03, 0.09, 0.88])
    counts = Quotas(shares, 10, seed=seed).between(0, 4000)
    # A random start per piece would be off by 29 (one standard deviation of the first).
    np.testing.assert_allclose(counts, shares * 40_000, atol=4)


def test_a_million_epochs_are_summed_at_once():
    shares = shares_of(np.random.default_rng(0).integers(1, 5000, 7344))
    counts = Quotas(shares, 100_003, seed=3).between(0, 10**6)
    assert counts.sum() == 100_003 * 10**6
    np.testing.assert_allclose(counts, shares * 100_003 * 1e6, rtol=1e-3)
