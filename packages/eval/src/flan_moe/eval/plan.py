"""What an evaluation will ask, settled before anything is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import get_args

from flan_moe.eval.extract import AnswerKind, answer_kind
from flan_moe.eval.prompts import SEPARATOR, build_prompt
from flan_moe.eval.requests import GenerateRequest, LoglikelihoodRequest, Request
from flan_moe.eval.results import Method
from flan_moe.eval.suite import Item, Mode, Suite, Task


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Bounds of greedy decoding.

    Attributes:
        direct_tokens: Generated tokens at most for a direct answer.
        cot_tokens: Generated tokens at most for a chain of thought and its answer.
    """

    direct_tokens: int = 64
    cot_tokens: int = 256

    def __post_init__(self) -> None:
        for key, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"{key}: {value}; expected at least 1")

    def max_new_tokens(self, mode: Mode) -> int:
        """The bound for a mode."""
        return self.direct_tokens if mode == "direct" else self.cot_tokens


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One task with one number of shots in one mode.

    Attributes:
        task: The task.
        items: The questions to ask, the task's first ones.
        shots: Exemplars per prompt.
        mode: "direct" or "cot".
        answers: What the task's answers look like.
    """

    task: Task
    items: tuple[Item, ...]
    shots: int
    mode: Mode
    answers: AnswerKind

    @property
    def method(self) -> Method:
        """Direct multiple choice is scored by log-likelihood, everything else is generated."""
        choice = self.task.kind == "multiple_choice" and self.mode == "direct"
        return "loglikelihood" if choice else "generate"

    def request(self, prompt: str, item: Item, decoding: Decoding) -> Request:
        """What to ask a model about one item."""
        if self.method == "loglikelihood":
            return LoglikelihoodRequest(prompt, item.options or ())
        # After exemplars a model that goes on would write the next one, behind a blank line.
        stop = (SEPARATOR,) if self.shots else ()
        return GenerateRequest(prompt, decoding.max_new_tokens(self.mode), stop)


def plan_cells(
    suite: Suite, *, shots: Sequence[int], modes: Sequence[Mode], limit: int | None
) -> list[Cell]:
    """The cells of an evaluation, in the order in which they are asked.

    Args:
        suite: What to ask.
        shots: Numbers of exemplars, each evaluated on its own.
        modes: "direct", "cot" or both; tasks without chain of thought are asked directly only.
        limit: Items of each task at most; None for all.

    Raises:
        ValueError: A setting is out of range, a task has too few exemplars or exemplars without
            rationale, or no task has one of the modes.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit: {limit}; expected at least 1, or None for all items")
    for name, values in (("shots", shots), ("modes", modes)):
        if not values or len(set(values)) != len(values):
            raise ValueError(f"{name}: {list(values)}; expected one or more different values")
    for mode in modes:
        if mode not in get_args(Mode):
            raise ValueError(f"modes: {mode!r}; expected some of {get_args(Mode)}")
    for task in suite.tasks:
        if not 0 <= min(shots) <= max(shots) <= len(task.exemplars):
            raise ValueError(
                f"shots: {list(shots)}; task {task.name!r} has {len(task.exemplars)} exemplars"
            )
    cells = [
        Cell(task=task, items=task.items[:limit], shots=n, mode=mode, answers=answer_kind(task))
        for n in shots
        for mode in modes
        for task in suite.tasks
        if mode in task.modes
    ]
    if not cells:
        raise ValueError(f"modes: {list(modes)}; no task of suite {suite.name!r} has one of them")
    for cell in cells:
        # One prompt of each finds exemplars that cannot be shown.
        build_prompt(cell.task, cell.items[0], shots=cell.shots, mode=cell.mode)
    return cells
