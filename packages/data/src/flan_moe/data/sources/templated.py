"""Templated rows as task sources: the prompts are what the dump holds, the division is ours.

The rows do not say which problem they show, and the same problem comes in several wordings and as
an exemplar of others. So no question is taken from a task that is trained: only held-out tasks give
evaluation questions, and validation measures loss on known problems in other words.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flan_moe.data.example import Example
from flan_moe.data.registry import load_registry
from flan_moe.data.sources.raw import RawOptions
from flan_moe.data.sources.task_source import TaskContent, TaskSource
from flan_moe.data.spool.reader import SpoolTask, spool_tasks
from flan_moe.data.suite import EXEMPLARS, SuiteItem
from flan_moe.data.template_types import ZS_NOOPT, ZS_OPT, template_type

if TYPE_CHECKING:
    import numpy as np

TRAIN, VALIDATION, EVALUATION, LEFT_OUT = range(4)


def templated_sources(
    spool: str | Path, options: RawOptions, *, held_out: Collection[str] = ()
) -> list[TaskSource]:
    """The tasks of a spool.

    A name that stands in two mixtures is preceded by its mixture and a point.

    Args:
        spool: What `ingest` made.
        options: How they are divided.
        held_out: Names of tasks that are evaluated and not trained on.

    Raises:
        RawDataError: The spool is unfinished or damaged.
    """
    tasks = spool_tasks(spool)
    registry = load_registry()
    names = Counter(task.task for task in tasks)
    sources = []
    for task in tasks:
        name = task.task if names[task.task] == 1 else f"{task.mixture}.{task.task}"
        sources.append(
            TaskSource(
                name=name,
                mixture=task.mixture,
                group="held_out" if name in held_out else "held_in",
                cot=task.mixture == "cot",
                open=partial(_open, task, name, options, name in held_out),
                inputs=tuple(sorted({file for file, _ in task.places})),
                provenance=registry.provenance(task.task),
            )
        )
    return sources


@dataclass(frozen=True, kw_only=True)
class _Division:
    """The use of every row, by number, and what was left out."""

    uses: np.ndarray
    dropped: Counter[str]


def _open(
    task: SpoolTask,
    name: str,
    options: RawOptions,
    held_out: bool,
    fits: Callable[[str], bool],
) -> TaskContent:
    division = _divide(task, options, held_out)

    def examples(use: int) -> _Examples:
        return _Examples(task=task, name=name, division=division, use=use)

    items = tuple(_items(task, name, division, EVALUATION, "q"))
    exemplars = tuple(_items(task, name, division, VALIDATION, "x"))[:EXEMPLARS]
    return TaskContent(
        train=examples(TRAIN),
        validation=() if held_out else examples(VALIDATION),
        items=items,
        exemplars=exemplars,
        kind="generate",
        chance=0.0,
        dropped=division.dropped,
    )


@dataclass(frozen=True, kw_only=True)
class _Examples:
    """The examples of one use, read from the spool each time they are iterated over."""

    task: SpoolTask
    name: str
    division: _Division
    use: int

    def __iter__(self) -> Iterator[Example]:
        for (template, prompt, target), use in zip(
            self.task.rows(), self.division.uses, strict=True
        ):
            if use == self.use:
                yield Example(
                    task=self.name,
                    mixture=self.task.mixture,
                    template=template,
                    prompt=prompt,
                    target=target,
                    meta={"shown": [prompt], "problems": [prompt]},
                )


def _divide(task: SpoolTask, options: RawOptions, held_out: bool) -> _Division:
    """Give every row a use, by hashes: 17 bytes of memory a row.

    Rows with the same prompt stay together. Held-in tasks give the validation rows, at most a
    quarter of the prompts, and train on the others or a sample of them. Held-out tasks give
    questions from their zero-shot rows, one per prompt.
    """
    import numpy as np

    prompts = np.empty(task.count, dtype=np.uint64)
    rows = np.empty(task.count, dtype=np.uint64)
    zero_shot = np.empty(task.count, dtype=bool)
    for number, (template, prompt, target) in enumerate(task.rows()):
        prompts[number] = _hash(prompt, options.seed)
        rows[number] = _hash(f"{len(prompt)}/{prompt}{target}", options.seed)
        zero_shot[number] = template_type(template) in (ZS_OPT, ZS_NOOPT)
    uses = np.full(task.count, LEFT_OUT, dtype=np.uint8)
    first = np.zeros(task.count, dtype=bool)
    first[np.unique(rows, return_index=True)[1]] = True
    dropped: Counter[str] = Counter()
    dropped["repeated record"] = int(task.count - first.sum())
    if held_out:
        once = np.zeros(task.count, dtype=bool)
        asked = np.flatnonzero(first & zero_shot)
        once[asked[np.unique(prompts[asked], return_index=True)[1]]] = True
        order = np.sort(prompts[once])
        shown = order[: min(EXEMPLARS, len(order) // 4)]
        questions = order[len(shown) : len(shown) + options.evaluation]
        uses[once & np.isin(prompts, shown)] = VALIDATION
        uses[once & np.isin(prompts, questions)] = EVALUATION
        dropped["of a held-out task and no question"] = int(
            first.sum() - len(shown) - len(questions)
        )
    else:
        order = np.unique(prompts)
        apart = order[: min(options.validation, len(order) // 4)]
        validation = first & np.isin(prompts, apart)
        train = first & ~validation
        if options.examples is not None and train.sum() > options.examples:
            numbers = np.flatnonzero(train)
            chosen = numbers[np.argsort(rows[numbers], kind="stable")[: options.examples]]
            dropped["over the number of examples per task"] = int(train.sum() - len(chosen))
            train = np.zeros(task.count, dtype=bool)
            train[chosen] = True
        uses[validation] = VALIDATION
        uses[train] = TRAIN
    return _Division(uses=uses, dropped=+dropped)


def _hash(text: str, seed: int) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=str(seed).encode())
    return int.from_bytes(digest.digest(), "big")


def _items(
    task: SpoolTask, name: str, division: _Division, use: int, prefix: str
) -> Iterator[SuiteItem]:
    """The rows of one use as questions, for held-out tasks."""
    number = 0
    for (template, prompt, target), given in zip(task.rows(), division.uses, strict=True):
        if given == use and template_type(template) in (ZS_OPT, ZS_NOOPT):
            yield SuiteItem(
                id=f"{name}-{prefix}{number}",
                input=prompt,
                targets=(target,),
                options=None,
                rationale=None,
                problem=prompt,
            )
            number += 1
