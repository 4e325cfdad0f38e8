"""The evaluation suite of a build: the questions of all tasks that training does not show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from flan_moe.data.building.pieces import Piece
from flan_moe.data.building.shown import shown_among
from flan_moe.data.suite import SuiteTask

REASON = "evaluation question also in training"


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What is left to ask.

    Attributes:
        tasks: Those with questions.
        counts: Name of every task, then how many questions it has and how many were removed.
        removed: All removed questions.
    """

    tasks: tuple[SuiteTask, ...]
    counts: dict[str, dict[str, int]]
    removed: Counter[str]


def unshown_questions(pieces: Sequence[Piece], report: Callable[[str], None]) -> Questions:
    """Remove every question that any task shows in any way.

    Args:
        pieces: All of them, in the order of the suite.
        report: Told about tasks that lose questions.
    """
    shown = shown_among(
        (item for piece in pieces for item in piece.suite.items),
        (piece.digests_N() for piece in pieces),
    )
    tasks, counts = [], {}
    removed: Counter[str] = Counter()
    for piece in pieces:
        task = piece.suite
        items = tuple(item for item in task.items if item not in shown)
        lost = len(task.items) - len(items)
        counts[task.name] = {"eval": len(items), "eval_removed": lost}
        removed[REASON] += lost
        if lost:
            report(f"  {task.name}: {lost} of {len(task.items)} questions are also in training")
        if items:
            tasks.append(replace(task, items=items))
    return Questions(tasks=tuple(tasks), counts=counts, removed=+removed)
