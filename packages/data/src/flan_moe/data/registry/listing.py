"""Registered tasks as lines of text or JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from textwrap import wrap

from flan_moe.data.registry.registry import Registry
from flan_moe.data.registry.task import COLLECTION, RegisteredTask
from flan_moe.data.registry.totals import mixture_totals


def task_lines(tasks: Sequence[RegisteredTask]) -> Iterator[str]:
    """A head, a line for each task, and their number."""
    width = max((len(task.name) for task in tasks), default=4)
    yield f"{'task':<{width}}  {'sub-mixture':<17} {'size':>10}  type; overlaps; notes"
    for task in tasks:
        size = "?" if task.size is None else f"{task.size:,}"
        remarks = [", ".join(task.types)]
        if task.overlaps:
            remarks.append(f"overlaps {', '.join(overlap.set for overlap in task.overlaps)}")
        if not task.released:
            remarks.append("not released")
        if task.part != COLLECTION:
            remarks.append(task.part)
        yield f"{task.name:<{width}}  {task.sub_mixture:<17} {size:>10}  {'; '.join(remarks)}"
    yield f"{len(tasks):,} tasks"


def count_lines(registry: Registry, tasks: Sequence[RegisteredTask]) -> Iterator[str]:
    """Numbers of tasks by mixture, beside those of the paper, and why these differ."""
    counts = Counter(task.mixture for task in tasks)
    yield (
        f"{'mixture':<8} {'selected':>9} {'registered':>11} {'released':>9} {'paper':>7} "
        f"{'differs':>8} {'samples':>12}"
    )
    totals = mixture_totals(registry)
    for total in totals:
        selected = len(tasks) if total.mixture == "all" else counts[total.mixture]
        yield (
            f"{total.mixture:<8} {selected:>9,} {total.tasks:>11,} {total.released:>9,} "
            f"{total.paper:>7,} {total.tasks - total.paper:>+8,} {total.samples:>12,}"
        )
    for total in totals:
        if total.note:
            yield ""
            yield from wrap(f"{total.mixture}: {total.note}", 100)
    parts = Counter(task.part for task in registry)
    yield ""
    yield from wrap(
        f"Beside the collection: {parts['inversion']} input inversions of its dialog and "
        f"chain-of-thought tasks, and {parts['excluded']} tasks of Natural Instructions that it "
        "leaves out (--all lists them).",
        100,
    )


def tasks_json(tasks: Sequence[RegisteredTask]) -> str:
    """Everything that is known of the tasks, as a JSON list."""
    return json.dumps([asdict(task) for task in tasks], indent=1, ensure_ascii=False)
