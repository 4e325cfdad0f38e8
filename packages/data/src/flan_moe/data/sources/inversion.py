"""Input inversion: what a chain-of-thought problem gives is asked for, and the other way round.

As in the Flan collection, each chain-of-thought task has an inverted twin with three directions:
the question from answer and reasoning, the reasoning from question and answer, question and answer
from the reasoning.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from flan_moe.data.example import Example
from flan_moe.data.forms import Forms, FormShares, Style, shares_of
from flan_moe.data.forms.wordings import Wordings
from flan_moe.data.forms.wordings.inversions import (
    PROBLEM_FROM_REASONING,
    QUESTION_FROM_REASONING,
    REASONING_FROM_ANSWER,
)
from flan_moe.data.readers import RawTask, Record
from flan_moe.data.sources.prompt_forms import task_forms

PREFIX = "cot_input_inversion_"


def inverted_name(name: str) -> str:
    """The name of a chain-of-thought task's twin."""
    return PREFIX + name.removeprefix("cot_").removeprefix("stream_")


def inverted_examples(
    task: RawTask,
    records: Sequence[Record],
    *,
    seed: str,
    fits: Callable[[str], bool],
    shares: Mapping[str, FormShares] | None = None,
) -> Iterator[Example]:
    """One inverted example for each problem, direction by direction.

    Args:
        task: The chain-of-thought task.
        records: Those of its problems that are trained on.
        seed: Of directions, forms and exemplars.
        fits: Whether a few-shot prompt is short enough.
        shares: As for `task_forms`.
    """
    directions = _directions(task, shares)
    parts: list[list[Record]] = [[] for _ in directions]
    for record in records:
        digest = hashlib.sha256(f"{seed}/{record.input}".encode()).digest()
        parts[digest[0] % len(parts)].append(record)
    for number, (forms, part) in enumerate(zip(directions, parts, strict=True)):
        yield from forms.examples(part, seed=f"{seed}/{number}", fits=fits)


def _directions(
    task: RawTask, shares: Mapping[str, FormShares] | None
) -> tuple[Forms[Record], ...]:
    asked = task_forms(task, "cot", (), shares)
    question = lambda record: asked.prompt(record, 0)  # noqa: E731 (a function among functions)
    reasoning = lambda record: record.rationale or ""  # noqa: E731
    problem = lambda record: (  # noqa: E731
        f"Question: {question(record)}\nAnswer: {asked.answer(record)}"
    )
    return tuple(
        _direction(task, wordings, asked, target, shares_of("cot", shares))
        for wordings, target in (
            (QUESTION_FROM_REASONING, question),
            (REASONING_FROM_ANSWER, reasoning),
            (PROBLEM_FROM_REASONING, problem),
        )
    )


def _direction(
    task: RawTask,
    wordings: Wordings,
    asked: Forms[Record],
    target: Callable[[Record], str],
    shares: FormShares,
) -> Forms[Record]:
    def worded(record: Record, style: Style) -> str:
        fields = {
            "question": asked.prompt(record, 0),
            "answer": asked.answer(record),
            "rationale": record.rationale or "",
        }
        return wordings.prompt(fields, None, style)

    return Forms(
        task=inverted_name(task.name),
        mixture="cot",
        templates=len(wordings.zero_shot),
        key=asked.key,  # the problem itself, so that no evaluation question is given away
        prompt=lambda record, template: worded(record, Style(template=template)),
        answer=target,
        worded=worded,
        shares=shares,
    )
