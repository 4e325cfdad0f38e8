"""Statistics of lengths in tokens: exact counts while building, quantiles and buckets to keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

QUANTILES: Mapping[str, float] = {
    "p5": 0.05,
    "p25": 0.25,
    "p50": 0.5,
    "p75": 0.75,
    "p95": 0.95,
    "p99": 0.99,
}
BUCKETS_PER_OCTAVE = 4


def quantiles(counts: Mapping[int, int]) -> dict[str, int]:
    """The `QUANTILES` of counted lengths: the shortest length that covers the share.

    Args:
        counts: Length, then how many samples have it; at least one.
    """
    total = sum(counts.values())
    found: dict[str, int] = {}
    waiting = list(QUANTILES.items())
    covered = 0
    for length in sorted(counts):
        covered += counts[length]
        while waiting and covered >= waiting[0][1] * total:
            found[waiting.pop(0)[0]] = length
    return found


def total(counts: Mapping[int, int]) -> int:
    """The sum of counted lengths."""
    return sum(length * number for length, number in counts.items())


def histogram(counts: Mapping[int, int]) -> dict[str, int]:
    """Counted lengths in buckets that widen by a fourth of an octave.

    Returns:
        The largest length of a bucket, as text for JSON, then the number of samples; no empty
        buckets, in ascending order.
    """
    buckets: Counter[int] = Counter()
    for length, number in counts.items():
        buckets[bucket(length)] += number
    return {str(edge): buckets[edge] for edge in sorted(buckets)}


def bucket(length: int) -> int:
    """The largest length of the bucket that a length falls into: exact up to 8, then 10, 12, 14.

    16, 20, 24, 28, 32, 40 and so on: whole numbers only, so no rounding decides.
    """
    step = max(1, 1 << max(0, (max(length, 1) - 1).bit_length() - 3))
    return -(-length // step) * step
