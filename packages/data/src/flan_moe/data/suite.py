"""Evaluation suites: questions with exact answers, in the format that ``flan-moe-eval`` reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flan_moe.data.prompts import ANSWER_CUE, COT_CUE

SUITE_FORMAT = "flan-moe-eval-suite"
SUITE_VERSION = 2
EXEMPLARS = 8  # per task, for few-shot prompts


@dataclass(frozen=True, kw_only=True)
class SuiteItem:
    """One question, or one solved exemplar.

    Attributes:
        id: Unique within its file.
        input: The zero-shot prompt, options included as the model sees them.
        targets: The right answers; the first is the one that exemplars show.
        options: What to choose from, or None.
        rationale: Reasoning that leads to the answer, or None.
        problem: The problem without any wording, to be compared with training; not written.
    """

    id: str
    input: str
    targets: tuple[str, ...]
    options: tuple[str, ...] | None = None
    rationale: str | None = None
    problem: str


@dataclass(frozen=True, kw_only=True)
class SuiteTask:
    """One task of a suite.

    Attributes:
        name: Also the name of its files.
        mixture: Where it comes from.
        group: ``"held_in"``, ``"held_out"`` of training, or ``"held_out_sibling"``: held out, but
            training has tasks of the same kind.
        kind: ``"generate"`` or ``"multiple_choice"``.
        cot: Whether exemplars carry rationales and the task may be asked with the cue.
        chance: Score of guessing without solving.
        items: Questions.
        exemplars: Solved problems for few-shot prompts.
    """

    name: str
    mixture: str
    group: str
    kind: str
    cot: bool
    chance: float
    items: tuple[SuiteItem, ...] = field(repr=False)
    exemplars: tuple[SuiteItem, ...] = field(repr=False)


def write_suite(directory: Path, *, name: str, source: str, tasks: Sequence[SuiteTask]) -> None:
    """Write ``suite.json`` and two jsonl files per task into a new directory.

    Args:
        directory: Made by this function.
        name: Of the suite.
        source: Where the questions come from, for people.
        tasks: In the order they are listed.
    """
    directory.mkdir()
    entries = []
    for task in tasks:
        file, exemplars = f"{task.name}.jsonl", f"{task.name}.exemplars.jsonl"
        _write_items(directory / file, task.items)
        entry = {
            "name": task.name,
            "mixture": task.mixture,
            "group": task.group,
            "kind": task.kind,
            "cot": task.cot,
            "cot_cue": COT_CUE if task.cot else "",
            "answer_cue": ANSWER_CUE if task.cot else "",
            "file": file,
            "chance": task.chance,
        }
        if task.exemplars:
            _write_items(directory / exemplars, task.exemplars)
            entry["exemplars"] = exemplars
        entries.append(entry)
    suite = {
        "format": SUITE_FORMAT,
        "version": SUITE_VERSION,
        "name": name,
        "source": source,
        "tasks": entries,
    }
    text = json.dumps(suite, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (directory / "suite.json").write_text(text, encoding="utf-8")


def _write_items(file: Path, items: Sequence[SuiteItem]) -> None:
    rows = [{k: v for k, v in vars(item).items() if k != "problem"} for item in items]
    lines = [json.dumps(row, sort_keys=True, ensure_ascii=False) for row in rows]
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
