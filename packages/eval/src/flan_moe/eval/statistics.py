"""Standard errors, confidence intervals and chance normalisation, in plain Python.

Two kinds of uncertainty are kept apart. *Over items* asks how the score would move with other
questions of the same tasks. *Over tasks* (clustered) asks how it would move with other tasks of the
same kind; it is what a claim about "held-out tasks" needs, and it is wider. See Miller 2024,
"Adding Error Bars to Evals" (arXiv 2411.00640), sections 2 and 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A confidence interval, ends included."""

    low: float
    high: float

    def map(self, scale: float, shift: float) -> Interval:
        """The interval of ``scale * x + shift`` for a positive scale."""
        return Interval(scale * self.low + shift, scale * self.high + shift)

    def clip(self, low: float, high: float) -> Interval:
        """The part of the interval between two values that the quantity cannot pass."""
        return Interval(min(max(self.low, low), high), min(max(self.high, low), high))


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean: sample standard deviation over the root of n; 0.0 for n = 1."""
    n = len(values)
    if n < 2:
        return 0.0
    mean = fmean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)


def wilson_interval(mean: float, n: int, *, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval for a proportion (Wilson 1927).

    Unlike mean plus or minus 1.96 standard errors it stays inside [0, 1] and does not collapse when
    every answer is right or every answer is wrong.

    Args:
        mean: Proportion of successes, in [0, 1].
        n: Number of trials, at least 1.
        confidence: Coverage.

    Raises:
        ValueError: An argument is out of its range.
    """
    if n < 1 or not 0.0 <= mean <= 1.0:
        raise ValueError(f"mean {mean}, n {n}; expected a proportion and at least one trial")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    denominator = 1 + z * z / n
    center = (mean + z * z / (2 * n)) / denominator
    half = z / denominator * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    low = 0.0 if mean == 0.0 else max(0.0, center - half)
    high = 1.0 if mean == 1.0 else min(1.0, center + half)
    return Interval(low, high)


@dataclass(frozen=True)
class MacroMean:
    """The unweighted mean of task means, with both uncertainties.

    Attributes:
        mean: Mean of the task means.
        over_items: Interval for other questions of these tasks.
        over_tasks: Interval for other tasks of this kind (Student t on the task means, one cluster
            per task), never narrower than the one over items; None for a single task, which says
            nothing about others.
    """

    mean: float
    over_items: Interval
    over_tasks: Interval | None


def macro_mean(
    means: Sequence[float], intervals: Sequence[Interval], *, confidence: float = CONFIDENCE
) -> MacroMean:
    """Average tasks with equal weight.

    The interval over items combines the tasks' own intervals: each side's distances from the means
    add as independent errors do (method of variance estimates recovery, Zou and Donner 2008). With
    Wilson intervals it stays honest for tasks that are all right or all wrong, whose plain standard
    error is zero.

    Args:
        means: Mean of each task.
        intervals: Confidence interval of each task's mean, at ``confidence``.
        confidence: Coverage.

    Raises:
        ValueError: There are no tasks, or not one interval per mean.
    """
    k = len(means)
    if not k or len(intervals) != k:
        raise ValueError(f"{k} means and {len(intervals)} intervals; expected one per task")
    mean = fmean(means)
    below = math.hypot(*(m - i.low for m, i in zip(means, intervals, strict=True))) / k
    above = math.hypot(*(i.high - m for m, i in zip(means, intervals, strict=True))) / k
    over_tasks = None
    if k > 1:
        half = student_t_quantile(0.5 + confidence / 2, k - 1) * standard_error(means)
        # Other tasks have other questions too: tasks that happen to agree must not look certain.
        over_tasks = Interval(mean - max(half, below), mean + max(half, above))
    return MacroMean(mean, Interval(mean - below, mean + above), over_tasks)


def student_t_cdf(t: float, degrees: int) -> float:
    """Cumulative distribution of Student's t for whole degrees of freedom.

    Uses the finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4.
    """
    theta = math.atan(t / math.sqrt(degrees))
    cos2 = math.cos(theta) ** 2
    odd = degrees % 2
    term = math.cos(theta) if odd else 1.0
    total = 0.0
    # term_j is the product of (j-1)/j over every second j, times a power of the cosine.
    for j in range(3 if odd else 2, degrees + 1, 2):
        total += term
        term *= (j - 1) / j * cos2
    central = math.sin(theta) * total
    return 0.5 + ((theta + central) / math.pi if odd else central / 2)


def student_t_quantile(probability: float, degrees: int) -> float:
    """Inverse of :func:`student_t_cdf` for a probability in (0.5, 1), by bisection.

    Raises:
        ValueError: An argument is out of its range.
    """
    if not 0.5 < probability < 1 or degrees < 1:
        raise ValueError(
            f"probability {probability}, degrees {degrees}; expected (0.5, 1) and >= 1"
        )
    low, high = 0.0, 1.0
    while student_t_cdf(high, degrees) < probability:
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if student_t_cdf(middle, degrees) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def chance_normalized(score: float, chance: float) -> float:
    """``100 (a - b) / (100 - b)`` with score ``a`` and chance ``b`` both given in [0, 1].

    100 is perfect and 0 is guessing; a score below chance is negative and is not clipped (Chung et
    al. 2022, footnote 5).

    Returns:
        The normalised score in percent.

    Raises:
        ValueError: ``chance`` is not in [0, 1).
    """
    if not 0.0 <= chance < 1.0:
        raise ValueError(f"chance: {chance}; expected a number in [0, 1)")
    return 100 * (score - chance) / (1 - chance)


@dataclass(frozen=True)
class PairedDifference:
    """Score of run B minus score of run A on the same items.

    Attributes:
        mean: Mean difference, in [-1, 1].
        interval: Bonett and Price's adjusted Wald interval of the difference.
        wins: Items that B has right and A wrong.
        losses: Items that A has right and B wrong.
        n: Items compared.
        p_value: Two-sided exact McNemar test, which is the sign test on wins and losses.
    """

    mean: float
    interval: Interval
    wins: int
    losses: int
    n: int
    p_value: float


def paired_difference(
    a: Sequence[bool], b: Sequence[bool], *, confidence: float = CONFIDENCE
) -> PairedDifference:
    """Compare two runs item by item; what both find hard cancels.

    The interval adds one win and one loss before it is computed (Bonett and Price 2012), so that it
    does not collapse when the runs agree on every item.

    Args:
        a: Whether run A has each item right.
        b: Whether run B has the same items right, in the same order.
        confidence: Coverage of the interval.

    Raises:
        ValueError: The runs differ in length or are empty.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"{len(a)} and {len(b)} verdicts; expected the same items in both runs")
    n = len(a)
    wins = sum(y and not x for x, y in zip(a, b, strict=True))
    losses = sum(x and not y for x, y in zip(a, b, strict=True))
    win, loss = (wins + 1) / (n + 2), (losses + 1) / (n + 2)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    half = z * math.sqrt((win + loss - (win - loss) ** 2) / (n + 2))
    return PairedDifference(
        mean=(wins - losses) / n,
        interval=Interval(max(-1.0, win - loss - half), min(1.0, win - loss + half)),
        wins=wins,
        losses=losses,
        n=n,
        p_value=sign_test(wins, losses),
    )


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact p-value that wins and losses are equally likely; 1.0 when there are none."""
    n = wins + losses
    tail = term = 1
    for k in range(min(wins, losses)):
        term = term * (n - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / 2**n)
