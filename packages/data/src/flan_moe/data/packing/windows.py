"""Packing of many examples at once: window after window, what fills badly goes to the next one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from flan_moe.data.packing.rows import assign_rows

WINDOW = 2048
# A row is finished when it holds this share of what is scarce. Flan lengths (2048 and 208 tokens,
# windows of 2,048): 0.95 fills 0.1 % less, 0.99 fills 0.1 % more in half as much time again.
FULL = 0.98


def pack_windows(
    lengths: np.ndarray, budget: tuple[int, int], *, window: int = WINDOW
) -> Iterator[np.ndarray]:
    """Rows of examples that nothing has to be kept stateless for.

    `assign_rows` is run on a window of examples at a time. At its end, examples are left that do
    not go together; they return to the pool, and the next window has what they lack. At least half
    of the rows of a window are finished, the fullest, so that this ends.

    Args:
        lengths: Encoder and decoder length of each example, (N, 2), none above the budget.
        budget: Encoder and decoder length of a row.
        window: Examples that are packed at once.

    Yields:
        The indices of the examples of a row; every example is in one row.

    Raises:
        ValueError: ``window`` is below 1.
    """
    if window < 1:
        raise ValueError(f"window is {window}; expected a positive whole number")
    limit_2 = np.asarray(budget, np.int64)
    pool = np.empty(0, np.int64)
    taken = 0
    while taken < len(lengths) or len(pool):
        more = min(len(lengths), taken + max(window - len(pool), 0))
        pool = np.concatenate([pool, np.arange(taken, more)])
        taken = more
        length_P2 = lengths[pool]
        rows = assign_rows(length_P2, budget)
        if taken == len(lengths):
            yield from (pool[row] for row in rows)
            return
        share_R2 = np.array([length_P2[row].sum(0) for row in rows]) / limit_2
        filled_R = share_R2[:, share_R2.sum(0).argmax()]
        order = np.argsort(-filled_R, kind="stable").tolist()
        finished = max(-(-len(rows) // 2), int((filled_R >= FULL).sum()))
        yield from (pool[rows[number]] for number in order[:finished])
        left = [index for number in order[finished:] for index in rows[number]]
        pool = pool[left]
