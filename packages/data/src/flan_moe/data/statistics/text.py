"""Statistics as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from flan_moe.data.offline.manifest import PackedManifest
from flan_moe.data.statistics.gather import (
    BATCH,
    QUANTILES,
    Lengths,
    PackingForecast,
    Statistics,
    TaskStatistics,
)

_Task = TypeVar("_Task")
_LABELS = [f"{quantile:.0%}" if quantile < 1 else "max" for quantile in QUANTILES]


def statistics_lines(statistics: Statistics, *, limit: int) -> Iterator[str]:
    """Tables of lengths, shares and packing.

    Args:
        statistics: What to tell.
        limit: Tasks to list from the top, and from the bottom.
    """
    samples = sum(mixture.total.count for mixture in statistics.mixtures)
    yield (
        f"{statistics.name}, {statistics.split}: {samples:,} samples of {len(statistics.tasks):,} "
        f"tasks in {len(statistics.mixtures)} mixtures"
    )
    yield ""
    head = " ".join(f"{label:>6}" for label in _LABELS)
    yield f"{'tokens':<20} {'samples':>11}   {'inputs ' + head}   {'targets ' + head}"
    for mixture in statistics.mixtures:
        yield _length_line(mixture.name, mixture.total)
        for kind, lengths in mixture.by_type.items():
            yield _length_line(f"  {kind}", lengths)
    yield ""
    yield from _task_lines(statistics, limit)
    yield ""
    yield from packing_lines(statistics.packing)


def packing_lines(packing: PackingForecast) -> Iterator[str]:
    """The recommended budget and the fill that was found with it."""
    budget = packing.budget
    yield (
        f"packing, tried on {packing.samples:,} samples as training draws them, "
        f"{packing.max_input_tokens:,} input tokens a row:"
    )
    yield (
        f"  recommended max_target_tokens: {budget.max_target_tokens:,}; {budget.overlong:.2%} of "
        f"the examples are longer than a row and hold {budget.lost:.2%} of the target tokens"
    )
    for name, fill in (
        (f"batches of {BATCH} examples", packing.batches),
        ("beforehand (flan-moe-data pack)", packing.windows),
    ):
        yield f"  {name}: {fill[0]:.1%} of the encoder filled, {fill[1]:.1%} of the decoder"


def packed_lines(manifest: PackedManifest, segments: list[int], *, limit: int) -> Iterator[str]:
    """Of a packed directory: fill, examples per row and shares of the tasks."""
    yield from manifest.lines()
    ordered = sorted(segments)
    places = [ordered[int(q * (len(ordered) - 1))] for q in (0, *QUANTILES)]
    labels = ["min", *_LABELS]
    yield "examples a row: " + ", ".join(f"{k} {v}" for k, v in zip(labels, places, strict=True))
    yield ""
    tasks = sorted(manifest.tasks, key=lambda task: (-task["packed"], task["name"]))
    total, tokens = manifest.total("packed"), manifest.total("target_tokens")
    yield f"{'task':<48} {'examples':>10} {'share':>8} {'of target tokens':>17}"
    for task in _ends(tasks, limit):
        if task is None:
            yield "..."
            continue
        name = f"{task['mixture']}/{task['name']}"
        share, part = task["packed"] / total, task["target_tokens"] / tokens
        yield f"{name:<48} {task['packed']:>10,} {share:>8.3%} {part:>17.3%}"


def _length_line(name: str, lengths: Lengths) -> str:
    inputs, targets = (
        " ".join(f"{value:>6,}" for value in values) for values in (lengths.inputs, lengths.targets)
    )
    return f"{name:<20} {lengths.count:>11,}          {inputs}           {targets}"


def _task_lines(statistics: Statistics, limit: int) -> Iterator[str]:
    explained = statistics.spec is not None
    head = f"{'task':<48} {'samples':>9} {'stored':>8}"
    yield head + (f" {statistics.spec:>14}" if explained else "") + "   mean tokens"
    for task in _ends(statistics.tasks, limit):
        yield "..." if task is None else _task_line(task)


def _task_line(task: TaskStatistics) -> str:
    line = f"{task.mixture + '/' + task.name:<48} {task.count:>9,} {task.share:>8.3%}"
    if task.explained is not None:
        line += f" {task.explained:>14.3%}"
    return line + f"   {task.mean_tokens[0]:,.0f} -> {task.mean_tokens[1]:,.0f}"


def _ends(tasks: Sequence[_Task], limit: int) -> Iterator[_Task | None]:
    """The first and the last, None where some are left out."""
    if len(tasks) <= 2 * limit:
        yield from tasks
        return
    yield from tasks[:limit]
    yield None
    yield from tasks[len(tasks) - limit :]
