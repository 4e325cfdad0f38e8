"""An explained mixture as text, JSON or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from flan_moe.data.mixing.explain import ExplainedTask, Explanation


def explanation_lines(explanation: Explanation, *, tasks: bool) -> Iterator[str]:
    """Totals by sub-mixture, and with ``tasks`` a line for every task, for reading."""
    spec = explanation.spec
    yield f"{spec.name}: {spec.description}".removesuffix(": ")
    yield ""
    samples = explanation.samples
    yield f"expected among {samples:,} samples"
    yield (
        f"  {'sub-mixture':<18} {'weight':>8} {'tasks':>6} {'held out':>8} {'size':>12} "
        f"{'share':>8} {'samples':>12} {'epochs':>8}"
    )
    for sub in explanation.sub_mixtures:
        yield (
            f"  {sub.name:<18} {sub.weight:>8g} {sub.tasks:>6,} {sub.held_out:>8,} {sub.size:>12,} "
            f"{sub.share:>8.3%} {sub.samples:>12,.1f} {sub.epochs:>8.4f}"
        )
    idle = [sub.name for sub in explanation.sub_mixtures if sub.weight > 0 and not sub.tasks]
    if idle:
        yield f"  no task for {', '.join(idle)}; the others divide the weight"
    if tasks:
        yield ""
        yield from _task_lines(explanation)
    if explanation.unknown:
        yield ""
        yield (
            f"left out, for their sizes are not known ({len(explanation.unknown)}): "
            f"{', '.join(explanation.unknown)}"
        )


def _task_lines(explanation: Explanation) -> Iterator[str]:
    width = max(len(task.share.task.name) for task in explanation.tasks)
    yield (
        f"  {'task':<{width}} {'sub-mixture':<18} {'size':>10} {'rate':>9} {'share':>9} "
        f"{'samples':>11} {'epochs':>8}"
        f"{'  epochs by setting' if any(task.type_epochs for task in explanation.tasks) else ''}"
    )
    for task in explanation.tasks:
        share = task.share
        start = (
            f"  {share.task.name:<{width}} {share.sub_mixture or '-':<18} {share.task.count:>10,}"
        )
        by_setting = "".join(f"  {name} {seen:.4f}" for name, seen in task.type_epochs.items())
        if task.reason:
            yield f"{start} {task.reason}"
        else:
            yield (
                f"{start} {share.rate:>9,.0f} {share.share:>9.4%} {task.samples:>11,.1f} "
                f"{task.epochs:>8.4f}{by_setting}"
            )


def explanation_record(explanation: Explanation) -> dict[str, Any]:
    """The whole explanation as values that JSON has."""
    spec = explanation.spec
    return {
        "mixture": asdict(spec),
        "samples": explanation.samples,
        "sub_mixtures": [asdict(sub) for sub in explanation.sub_mixtures],
        "tasks": [_record(task) for task in explanation.tasks],
        "unknown_size": list(explanation.unknown),
    }


def explanation_csv(explanation: Explanation) -> str:
    """The tasks as a table with a header; settings are not in it."""
    stream = io.StringIO()
    records = [_record(task) for task in explanation.tasks]
    names = [key for key in records[0] if key != "types"]
    writer = csv.DictWriter(stream, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return stream.getvalue()


def _record(task: ExplainedTask) -> dict[str, Any]:
    share = task.share
    return {
        "task": share.task.name,
        "mixture": share.task.mixture,
        "sub_mixture": share.sub_mixture,
        "size": share.task.count,
        "rate": share.rate,
        "share": share.share,
        "samples": task.samples,
        "epochs": task.epochs,
        "held_out": share.held_out,
        "reason": task.reason,
        "types": {
            name: {
                "size": share.task.types[name],
                "share": part,
                "samples": part * task.samples / share.share,
                "epochs": task.type_epochs[name],
            }
            for name, part in share.types.items()
        },
    }
