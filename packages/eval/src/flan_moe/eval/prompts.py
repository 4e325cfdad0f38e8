"""From a question to the text a model reads: zero- or few-shot, direct or chain of thought.

Layout. A question is the item's input; in the chain-of-thought mode the cue ("Let's think step by
step.") follows on its own line. An exemplar is a question, a newline and its answer: the target, or
the rationale and "So the answer is <target>.". Blank lines separate exemplars and question.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flan_moe.eval.suite import Item, Mode, Task

SEPARATOR = "\n\n"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt and what it took to make it fit.

    Attributes:
        text: What the model reads.
        exemplars: Number of exemplars in it.
        excess_tokens: Tokens over the model's limit that no dropped exemplar could save, or 0.
    """

    text: str
    exemplars: int
    excess_tokens: int


def question_text(task: Task, item: Item, mode: Mode) -> str:
    """The question as the model is asked it, without exemplars."""
    return item.input if mode == "direct" else f"{item.input}\n{task.cot_cue}"


def answer_text(task: Task, item: Item, mode: Mode) -> str:
    """The right answer as an exemplar shows it.

    Raises:
        ValueError: The mode is "cot" and the item has no rationale.
    """
    if mode == "direct":
        return item.target
    if item.rationale is None:
        raise ValueError(
            f"task {task.name!r}, item {item.id!r}: no rationale, so no chain-of-thought exemplar"
        )
    return f"{item.rationale} So {task.answer_cue} {item.target}."


def build_prompt(task: Task, item: Item, *, shots: int, mode: Mode) -> str:
    """The prompt with the first ``shots`` exemplars of the task.

    Raises:
        ValueError: The task has fewer exemplars, or cannot be asked in this mode.
    """
    if not 0 <= shots <= len(task.exemplars):
        raise ValueError(
            f"task {task.name!r}: {shots} shots asked for; it has {len(task.exemplars)} exemplars"
        )
    if mode not in task.modes:
        raise ValueError(f"task {task.name!r}: mode {mode!r}; expected one of {task.modes}")
    parts = [
        f"{question_text(task, exemplar, mode)}\n{answer_text(task, exemplar, mode)}"
        for exemplar in task.exemplars[:shots]
    ]
    return SEPARATOR.join([*parts, question_text(task, item, mode)])


def fit_prompt(
    task: Task, item: Item, *, shots: int, mode: Mode, excess: Callable[[str], int]
) -> Prompt:
    """The prompt with as many of the first ``shots`` exemplars as the model has room for.

    Exemplars are dropped from the end, as the Flan evaluations do.

    Args:
        task: Gives the exemplars and the cues.
        item: The question.
        shots: Exemplars wanted.
        mode: "direct" or "cot".
        excess: Tokens by which a prompt is over the model's limit; zero or less when it fits.
    """
    for kept in range(shots, -1, -1):
        text = build_prompt(task, item, shots=kept, mode=mode)
        over = max(0, excess(text))
        if not over:
            break
    return Prompt(text=text, exemplars=kept, excess_tokens=over)
