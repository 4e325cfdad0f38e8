"""Comparing two runs on the same questions."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from statistics import fmean

from flan_moe.eval.run import CellKey, Run, cell_key
from flan_moe.eval.statistics import Interval, PairedDifference, macro_mean, paired_difference
from flan_moe.eval.suite import GROUP_NAMES, Group, Mode

COMPARISON_FORMAT = "flan-moe-eval-comparison"
COMPARISON_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class TaskComparison:
    """One task at one setting.

    Attributes:
        task: Name of the task.
        group: As in :class:`flan_moe.eval.Task`.
        shots: Exemplars per prompt.
        mode: "direct" or "cot".
        score_a: Score of run A on the common items.
        score_b: Score of run B on them.
        difference: B minus A, paired.
    """

    task: str
    group: Group
    shots: int
    mode: Mode
    score_a: float
    score_b: float
    difference: PairedDifference


@dataclass(frozen=True, kw_only=True)
class GroupComparison:
    """Mean difference, B minus A, over the tasks of a group at one setting.

    Attributes:
        group: As in :class:`flan_moe.eval.Task`.
        shots: Exemplars per prompt.
        mode: "direct" or "cot".
        tasks: Names of the tasks.
        difference: Mean of the tasks' differences.
        over_items: 95 % interval for other questions of these tasks.
        over_tasks: 95 % interval for other tasks of this kind; None for a single task.
    """

    group: Group
    shots: int
    mode: Mode
    tasks: tuple[str, ...]
    difference: float
    over_items: Interval
    over_tasks: Interval | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Run B against run A.

    Attributes:
        label_a: Name of run A, the one to start from.
        label_b: Name of run B.
        tasks: Comparisons of what both runs answered.
        groups: Means over tasks.
        only_a: What only run A answered.
        only_b: What only run B answered.
    """

    label_a: str
    label_b: str
    tasks: tuple[TaskComparison, ...]
    groups: tuple[GroupComparison, ...]
    only_a: tuple[CellKey, ...]
    only_b: tuple[CellKey, ...]

    def to_json(self) -> str:
        """Versioned JSON text."""
        record = {"format": COMPARISON_FORMAT, "version": COMPARISON_VERSION, **asdict(self)}
        return json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def compare_runs(a: Run, b: Run) -> Comparison:
    """Compare two runs, paired by item.

    Items are paired where task content, shots and mode are the same; runs with different limits are
    compared on the items they share.

    Raises:
        ValueError: A task has the same name but other content in the two runs, or they have
            nothing in common.
    """
    scores_a = {cell_key(score): score for score in a.results.tasks}
    scores_b = {cell_key(score): score for score in b.results.tasks}
    tasks = []
    for key, score in scores_a.items():
        if key not in scores_b:
            continue
        if scores_b[key].content_hash != score.content_hash:
            raise ValueError(
                f"task {key.task!r} is not the same in {a.label!r} and {b.label!r}: its items or "
                "exemplars differ"
            )
        tasks.append(_compare_cell(key, score.group, a, b))
    if not tasks:
        raise ValueError(f"{a.label!r} and {b.label!r} have no task, shots and mode in common")
    return Comparison(
        label_a=a.label,
        label_b=b.label,
        tasks=tuple(tasks),
        groups=_compare_groups(tasks),
        only_a=tuple(key for key in scores_a if key not in scores_b),
        only_b=tuple(key for key in scores_b if key not in scores_a),
    )


def _compare_cell(key: CellKey, group: Group, a: Run, b: Run) -> TaskComparison:
    found_b = {sample.id: sample.correct for sample in b.samples.get(key, ())}
    pairs = [
        (sample.correct, found_b[sample.id])
        for sample in a.samples.get(key, ())
        if sample.id in found_b
    ]
    if not pairs:
        raise ValueError(
            f"task {key.task!r}, {key.shots}-shot {key.mode}: no item has samples in both runs"
        )
    of_a, of_b = [x for x, _ in pairs], [y for _, y in pairs]
    return TaskComparison(
        task=key.task,
        group=group,
        shots=key.shots,
        mode=key.mode,
        score_a=fmean(of_a),
        score_b=fmean(of_b),
        difference=paired_difference(of_a, of_b),
    )


def _compare_groups(tasks: list[TaskComparison]) -> tuple[GroupComparison, ...]:
    groups = []
    for group in GROUP_NAMES:
        for shots, mode in dict.fromkeys((task.shots, task.mode) for task in tasks):
            members = [t for t in tasks if (t.group, t.shots, t.mode) == (group, shots, mode)]
            if not members:
                continue
            mean = macro_mean(
                [t.difference.mean for t in members], [t.difference.interval for t in members]
            )
            groups.append(
                GroupComparison(
                    group=group,
                    shots=shots,
                    mode=mode,
                    tasks=tuple(t.task for t in members),
                    difference=mean.mean,
                    over_items=mean.over_items,
                    over_tasks=mean.over_tasks and mean.over_tasks.clip(-1.0, 1.0),
                )
            )
    return tuple(groups)
