"""Examples-proportional mixing by the weights of stored mixtures and the caps of task tables.

A task's rate is ``min(count, cap)`` (Raffel et al. 2020, section 3.5.2; caps of the Flan collection
in `flan_moe.data.sources.task_source`). Rates are normalised within a mixture, mixtures are
combined by weight. Legend: T tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def proportional_rates(counts: Sequence[int], caps: Sequence[int]) -> np.ndarray:
    """Share of each task in its mixture, (T,) float64 with sum 1."""
    capped_T = np.minimum(np.asarray(counts, np.float64), np.asarray(caps, np.float64))
    return capped_T / capped_T.sum()


def whole_shares(shares: np.ndarray, total: int) -> np.ndarray:
    """Split ``total`` into whole numbers by share: largest remainders, first come first on ties.

    Args:
        shares: (T,) non-negative, sum 1.
        total: What the result sums to.

    Returns:
        (T,) int64; each within one of its exact share.
    """
    exact_T = np.asarray(shares, np.float64) * total
    quota_T = np.floor(exact_T).astype(np.int64)
    missing = total - int(quota_T.sum())
    quota_T[np.argsort(-(exact_T - quota_T), kind="stable")[:missing]] += 1
    return quota_T


def mixture_weights(
    sizes: Mapping[str, int], weights: Mapping[str, float] | None
) -> dict[str, float]:
    """Share of each mixture in an epoch.

    Args:
        sizes: Mixture, then the sum of its tasks' capped counts.
        weights: Mixture, then a non-negative number; every mixture must be named, 0 leaves one out.
            None weighs mixtures by size, so that all tasks share one proportion.

    Returns:
        Positive shares with sum 1, in the order of ``sizes``.

    Raises:
        ValueError: A name is unknown or missing, or a number is not a weight; names the key.
    """
    if weights is None:
        weights = sizes
    for name, weight in weights.items():
        if name not in sizes:
            raise ValueError(f"weights.{name}: no such mixture; expected {sorted(sizes)}")
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not number or not 0 <= weight < float("inf"):
            raise ValueError(f"weights.{name} is {weight!r}; expected a number, 0 or more")
    missing = [name for name in sizes if name not in weights]
    if missing:
        raise ValueError(f"weights.{missing[0]}: missing; give every mixture a weight, 0 for none")
    total = sum(weights.values())
    if total <= 0:
        raise ValueError("weights: all are 0; expected at least one above")
    if total == float("inf"):
        raise ValueError("weights: their sum overflows; expected a finite one")
    return {name: weights[name] / total for name in sizes if weights[name] > 0}
