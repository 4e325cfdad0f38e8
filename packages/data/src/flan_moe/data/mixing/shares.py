"""Shares: a specification applied to tasks of known size.

Examples-proportional mixing with a maximum (Raffel et al. 2020, section 3.5.2; FLAN, in its
flan/v2/mixtures_utils.py): a task with n samples under cap K and temperature T has the rate
``factor * min(n, K) ** (1 / T)``; rates are normalised within a sub-mixture and sub-mixtures are
combined by weight. Weights of sub-mixtures that have no task at hand, or only held-out ones or ones
without any wanted setting, are divided among the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from flan_moe.data.mixing.spec import MixtureSpec, SubMixture


@dataclass(frozen=True, kw_only=True)
class TaskSize:
    """A task at hand.

    Attributes:
        name: Of the task.
        mixture: Stored mixture that it belongs to.
        count: Number of its samples.
        types: Setting (`flan_moe.data.template_types`), then number of samples; empty if unknown.
    """

    name: str
    mixture: str
    count: int
    types: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TaskShare:
    """What a task gets.

    Attributes:
        task: Which.
        sub_mixture: Where the specification puts it; None: nowhere, or held out.
        held_out: Whether the specification holds it out.
        rate: Its rate within the sub-mixture, before normalising.
        share: Of all samples; shares of all tasks sum to 1.
        types: Setting, then its share of all samples; sums to ``share``. Empty if unknown.
    """

    task: TaskSize
    sub_mixture: str | None
    held_out: bool
    rate: float
    share: float
    types: Mapping[str, float]


def task_shares(
    spec: MixtureSpec, tasks: Sequence[TaskSize], *, held_out: Iterable[str] = ()
) -> tuple[TaskShare, ...]:
    """The share of every task, in the order given.

    Args:
        spec: The mixture.
        tasks: With at least one sample each.
        held_out: Names of tasks that ``@SET`` entries of the specification stand for.

    Raises:
        ValueError: A task belongs to two sub-mixtures, the rates of a sub-mixture overflow, or no
            task is left.
    """
    apart = set(held_out)
    patterns = tuple(name for name in spec.held_out if not name.startswith("@"))
    homes = [sub_mixture_of(spec, task) for task in tasks]
    held = [
        task.name in apart or bool(patterns and _matches(task.name, patterns)) for task in tasks
    ]
    wanted: list[Mapping[str, float]] = []
    rates: list[float] = []
    totals = dict.fromkeys(spec.sub_mixtures, 0.0)
    for task, home, out in zip(tasks, homes, held, strict=True):
        parts: Mapping[str, float] = {}
        rate = 0.0
        if home is not None and not out:
            sub = spec.sub_mixtures[home]
            parts = _wanted(sub, task)
            if parts or not task.types:
                rate = _rate(sub, task)
                totals[home] += rate
        wanted.append(parts)
        rates.append(rate)
    for name, sub in spec.sub_mixtures.items():
        if not totals[name] < math.inf:
            raise ValueError(
                f"mixture {spec.name!r}: sub_mixtures.{name}: rates overflow under temperature "
                f"{sub.temperature} and factors {dict(sub.factors)}; expected moderate ones"
            )
    weight = sum(sub.weight for name, sub in spec.sub_mixtures.items() if totals[name] > 0)
    if not weight > 0:
        raise ValueError(f"mixture {spec.name!r}: none of the {len(tasks)} tasks gets a share")
    unit = {  # share of the whole for each unit of rate
        name: sub.weight / weight / totals[name]
        for name, sub in spec.sub_mixtures.items()
        if totals[name] > 0
    }
    result = []
    for task, home, out, rate, parts in zip(tasks, homes, held, rates, wanted, strict=True):
        share = rate * unit[home] if rate > 0 and home is not None else 0.0
        total = sum(parts.values())
        types = {kind: share * part / total for kind, part in parts.items()} if share else {}
        result.append(
            TaskShare(
                task=task, sub_mixture=home, held_out=out, rate=rate, share=share, types=types
            )
        )
    return tuple(result)


def sub_mixture_of(spec: MixtureSpec, task: TaskSize) -> str | None:
    """The sub-mixture that a task belongs to, held out or not; None if to none.

    Raises:
        ValueError: It belongs to two.
    """
    homes = []
    for name, sub in spec.sub_mixtures.items():
        if task.mixture not in sub.mixtures or not _matches(task.name, sub.tasks):
            continue
        if not sub.without or not _matches(task.name, sub.without):
            homes.append(name)
    if len(homes) > 1:
        raise ValueError(
            f"mixture {spec.name!r}: task {task.name!r} belongs to {homes[0]!r} and {homes[1]!r}; "
            "expected one sub-mixture"
        )
    return homes[0] if homes else None


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return patterns == ("*",) or any(fnmatchcase(name, pattern) for pattern in patterns)


def _rate(sub: SubMixture, task: TaskSize) -> float:
    factor = 1.0
    for pattern, value in sub.factors.items():
        if fnmatchcase(task.name, pattern):
            factor = value
            break
    capped = task.count if sub.cap is None else min(task.count, sub.cap)
    try:
        return factor * capped ** (1 / sub.temperature)
    except OverflowError:
        return math.inf


def _wanted(sub: SubMixture, task: TaskSize) -> Mapping[str, float]:
    """Setting, then its weight among those that the task has and the sub-mixture wants."""
    shares = sub.template_shares
    if shares is None:
        return task.types
    return {kind: share for kind in task.types if (share := shares.get(kind, 0.0)) > 0}
