"""How long a decoder row should be, given the data and the encoder row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MULTIPLE = 8  # budgets are multiples of this, as widths of batches are
EXPECTED_FILL = 0.97  # of the encoder, by `assign_rows` in batches of a few hundred Flan examples


@dataclass(frozen=True, kw_only=True)
class TargetBudget:
    """A decoder budget and what to expect of it.

    Attributes:
        max_target_tokens: Decoder tokens of a row.
        fill: Share of the decoder rows that holds tokens, if the encoder is filled as expected.
        overlong: Share of the examples that exceed a budget, by input or target; what becomes of
            them is the packer's ``overlong`` policy.
        lost: Share of all target tokens that those examples hold.
    """

    max_target_tokens: int
    fill: float
    overlong: float
    lost: float


def choose_target_budget(
    lengths: Sequence[tuple[int, int]],
    max_input_tokens: int,
    *,
    fill: float = 0.8,
    most_overlong: float = 1.0,
) -> TargetBudget:
    """The largest decoder budget that is expected to be filled as wanted.

    A longer decoder row holds longer targets and has more padding. Examples that exceed a budget
    count as left out.

    Args:
        lengths: Encoder and decoder length of examples as training draws them.
        max_input_tokens: Encoder tokens of a row.
        fill: Least expected share of decoder rows that holds tokens.
        most_overlong: Most share of examples that may exceed a budget; where ``fill`` would leave
            out more, the budget is longer and emptier.

    Raises:
        ValueError: There are no lengths, a number is out of range, or more than ``most_overlong``
            of the inputs alone exceed ``max_input_tokens``.
    """
    if not len(lengths):
        raise ValueError("lengths is empty; expected the lengths of some examples")
    for key, value in (("fill", fill), ("most_overlong", most_overlong)):
        if not 0 <= value <= 1:
            raise ValueError(f"{key} is {value!r}; expected a number from 0 to 1")
    source_N, target_N = np.asarray(lengths, np.int64).T
    short_N = source_N <= max_input_tokens
    if 1 - short_N.mean() > most_overlong or not short_N.any():
        raise ValueError(
            f"max_input_tokens is {max_input_tokens}: {1 - short_N.mean():.2%} of the inputs are "
            f"longer; most_overlong is {most_overlong:.2%}"
        )
    per_row = target_N.sum() / source_N[short_N].sum() * EXPECTED_FILL * max_input_tokens
    longest = max(int(target_N.max()), int(per_row / max(fill, 0.01)))
    budgets = np.arange(MULTIPLE, longest + 2 * MULTIPLE, MULTIPLE)
    order = np.argsort(target_N[short_N], kind="stable")
    sources, targets = source_N[short_N][order], target_N[short_N][order]
    kept = np.searchsorted(targets, budgets, side="right")
    sums = [np.concatenate([[0], np.cumsum(side)])[kept] for side in (sources, targets)]
    rows = np.maximum(sums[0] / (EXPECTED_FILL * max_input_tokens), 1e-9)
    fills = np.minimum(sums[1] / (rows * budgets), 1.0)
    overlong = 1 - kept / len(source_N)
    good = (fills >= fill) & (overlong <= most_overlong) & (kept > 0)
    if good.any():
        best = int(np.flatnonzero(good)[-1])
    else:  # the shortest that leaves out few enough
        best = int(np.flatnonzero((overlong <= most_overlong) & (kept > 0))[0])
    return TargetBudget(
        max_target_tokens=int(budgets[best]),
        fill=float(fills[best]),
        overlong=float(overlong[best]),
        lost=float(1 - sums[1][best] / target_N.sum()),
    )
