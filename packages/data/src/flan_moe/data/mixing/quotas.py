"""Whole numbers of samples by share, exact over any number of epochs at once.

Each stretch of samples ("piece") gives every cell the floor of its exact share; who gets one more
is decided by systematic sampling. So a count is within one of its exact share, for single cells and
for any cells that stand side by side, and a cell whose share is 0.3 samples is met in three pieces
of ten instead of never. The starting points of the pieces are a golden-ratio sequence, which
spreads so evenly that the sum over many pieces stays within a few samples of the exact share; and
it can be summed without going through the pieces one by one.

Legend: C cells.
"""

from __future__ import annotations

import numpy as np

GOLDEN = (5**0.5 - 1) / 2
# A share that is whole but for rounding error must not win or lose a sample by it.
ROUNDING = 1e-6


class Quotas:
    """Counts of cells in pieces of one length.

    Args:
        shares: (C,) non-negative, sum 1.
        length: Samples in a piece.
        seed: Of where the first piece starts.
    """

    def __init__(self, shares: np.ndarray, length: int, *, seed: int | tuple[int, ...]) -> None:
        exact_C = np.asarray(shares, np.float64) * length
        self._whole_C = np.floor(exact_C + ROUNDING).astype(np.int64)
        fraction_C = exact_C - self._whole_C
        fraction_C[fraction_C < ROUNDING] = 0.0
        self._extra = length - int(self._whole_C.sum())
        edges_C = np.zeros(len(exact_C))
        if self._extra:
            reached_C = np.cumsum(fraction_C)
            edges_C = reached_C * (self._extra / reached_C[-1])
            edges_C[reached_C == reached_C[-1]] = self._extra  # exact, whatever the rounding
        self._floor_C, self._reach_C = np.floor(edges_C), 1 - edges_C % 1
        self._first = np.random.default_rng(seed).random()

    def between(self, begin: int, end: int) -> np.ndarray:
        """Counts over the pieces with numbers ``begin`` to ``end - 1``.

        Returns:
            (C,) int64 with sum ``length * (end - begin)``.
        """
        pieces = end - begin
        counts_C = self._whole_C * pieces
        if not self._extra or not pieces:
            return counts_C
        starts = np.sort((self._first + GOLDEN * np.arange(begin, end)) % 1)
        # How many of floor(edge + start) over the pieces are one above floor(edge).
        above_C = pieces - np.searchsorted(starts, self._reach_C, side="left")
        picks_C = (self._floor_C * pieces).astype(np.int64) + above_C
        return counts_C + np.diff(picks_C, prepend=0)
