"""The evaluation suite on disk: ``suite.json`` and one jsonl file of items per task.

``suite.json`` holds ``format``, ``version``, ``name``, ``source`` and a list of ``tasks``; every
line of a task's file holds ``id``, ``input``, ``targets``, ``options`` and ``rationale``. Loading
checks all of it, so that a broken suite is refused before a model is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from flan_moe.eval.strict_json import Checked, parse_json

SUITE_FORMAT = "flan-moe-eval-suite"
SUITE_VERSION = 2

Group = Literal["held_in", "held_out_sibling", "held_out"]
Kind = Literal["generate", "multiple_choice"]
Mode = Literal["direct", "cot"]

# In the order of tables and plots: what says most about unseen tasks comes first.
GROUP_NAMES: Mapping[Group, str] = {
    "held_out": "held-out",
    "held_out_sibling": "held-out sibling",
    "held_in": "held-in",
}


class SuiteError(ValueError):
    """A suite that cannot be used; the message names the file, the line and the key."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question.

    Attributes:
        id: Unique within its file.
        input: Zero-shot prompt body, options included as the model sees them.
        targets: The right answers, one or more; some of ``options`` where there are any. Any of
            them counts; the first is the one that exemplars show.
        options: Candidate answers, or None for a free answer.
        rationale: Worked reasoning that leads to the target, or None.
    """

    id: str
    input: str
    targets: tuple[str, ...]
    options: tuple[str, ...] | None = None
    rationale: str | None = None

    @property
    def target(self) -> str:
        """The answer to show: the first of the right ones."""
        return self.targets[0]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task: its questions, its exemplars and how to ask and score them.

    Attributes:
        name: Unique within the suite.
        mixture: Training mixture in whose manner the task is written.
        group: "held_in" if the model was trained on this task; "held_out" if it was trained on no
            task of this kind; "held_out_sibling" if not on this task, but on others of its kind.
        kind: "generate" (exact match) or "multiple_choice" (log-likelihood of the options).
        cot: Whether the task can be asked for with a chain of thought.
        cot_cue: Line that asks for reasoning.
        answer_cue: Words before the answer at the end of a chain of thought.
        chance: Score of guessing, in [0, 1).
        items: Questions.
        exemplars: Solved questions for few-shot prompts, in the order they are used.
    """

    name: str
    mixture: str
    group: Group
    kind: Kind
    cot: bool
    cot_cue: str
    answer_cue: str
    chance: float
    items: tuple[Item, ...]
    exemplars: tuple[Item, ...] = ()

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes this task can be asked in."""
        return ("direct", "cot") if self.cot else ("direct",)

    def content_hash(self) -> str:
        """Digest of everything a score of this task depends on, but the model."""
        text = json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A named list of tasks."""

    name: str
    source: str
    tasks: tuple[Task, ...]

    def content_hash(self) -> str:
        """Digest of the name and of the content of every task, in order."""
        parts = [self.name, *(task.content_hash() for task in self.tasks)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def select(self, names: tuple[str, ...]) -> Suite:
        """The same suite with only the named tasks.

        Raises:
            ValueError: A name is not in the suite.
        """
        known = {task.name for task in self.tasks}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"task {unknown[0]!r} is not in suite {self.name!r}: {sorted(known)}")
        return Suite(
            name=self.name,
            source=self.source,
            tasks=tuple(task for task in self.tasks if task.name in names),
        )


def load_suite(path: str | Path) -> Suite:
    """Read and check a suite.

    Args:
        path: A folder that holds ``suite.json``, or that file.

    Returns:
        The suite with all items in memory.

    Raises:
        FileNotFoundError: There is no ``suite.json``.
        SuiteError: Anything in it or in a task's files is not as the format says.
    """
    path = Path(path)
    file = path / "suite.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: no such file; expected an evaluation suite (a folder with suite.json)"
        )
    try:
        return _read_suite(file)
    except ValueError as error:
        raise SuiteError(str(error)) from None


def _read_suite(file: Path) -> Suite:
    record = Checked.of(parse_json(file.read_bytes(), str(file)), str(file))
    record.only_keys("format", "version", "name", "source", "tasks")
    record.literal("format", SUITE_FORMAT)
    record.literal("version", SUITE_VERSION)
    tasks: list[Task] = []
    entries = record.items("tasks")
    if not entries:
        raise ValueError(f"{file}: tasks: empty; expected at least one task")
    for entry in entries:
        task = _read_task(entry, file.parent)
        if task.name in {earlier.name for earlier in tasks}:
            raise ValueError(f"{entry.where}: name: {task.name!r} is used twice")
        tasks.append(task)
    return Suite(name=record.text("name"), source=record.text("source"), tasks=tuple(tasks))


def _read_task(entry: Checked, folder: Path) -> Task:
    entry.only_keys(
        *("name", "mixture", "group", "kind", "cot", "cot_cue", "answer_cue", "chance"),
        *("file", "exemplars"),
    )
    kind = entry.choice("kind", get_args(Kind))
    cot = entry.boolean("cot")
    chance = entry.number("chance")
    if not 0.0 <= chance < 1.0:
        raise ValueError(f"{entry.where}: chance: {chance}; expected a number in [0, 1)")
    items = _read_items(folder / entry.file_name("file"), kind=kind, cot_exemplars=False)
    exemplars: tuple[Item, ...] = ()
    if entry.get("exemplars") is not None:
        file = folder / entry.file_name("exemplars")
        exemplars = _read_items(file, kind=kind, cot_exemplars=cot)
        _refuse_leaks(items, exemplars, file)
    return Task(
        name=entry.name("name"),
        mixture=entry.text("mixture"),
        group=entry.choice("group", get_args(Group)),
        kind=kind,
        cot=cot,
        cot_cue=entry.text("cot_cue", empty=not cot),
        answer_cue=entry.text("answer_cue", empty=not cot),
        chance=chance,
        items=items,
        exemplars=exemplars,
    )


def _read_items(file: Path, *, kind: Kind, cot_exemplars: bool) -> tuple[Item, ...]:
    if not file.is_file():
        raise ValueError(f"{file}: no such file, but {file.parent / 'suite.json'} names it")
    items: dict[str, Item] = {}
    # Split on "\n" only: str.splitlines also breaks at U+2028, which JSON may hold unescaped.
    lines = file.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            if number == len(lines):
                continue
            raise ValueError(f"{file}:{number}: blank line; expected one JSON object")
        where = f"{file}:{number}"
        item = _read_item(Checked.of(parse_json(line, where), where), kind, cot_exemplars)
        if item.id in items:
            raise ValueError(f"{where}: id: {item.id!r} is used twice")
        items[item.id] = item
    if not items:
        raise ValueError(f"{file}: empty; expected one JSON object per line")
    return tuple(items.values())


def _read_item(record: Checked, kind: Kind, cot_exemplar: bool) -> Item:
    record.only_keys("id", "input", "targets", "options", "rationale")
    targets = record.texts("targets")
    if not targets or len(set(targets)) != len(targets):
        raise ValueError(
            f"{record.where}: targets: {list(targets)}; expected one or more different strings"
        )
    options: tuple[str, ...] | None = None
    if record.get("options") is not None:
        options = record.texts("options")
        if len(options) < 2 or len(set(options)) != len(options):
            raise ValueError(
                f"{record.where}: options: {list(options)}; expected two or more different strings"
            )
        if not set(targets) <= set(options):
            raise ValueError(
                f"{record.where}: targets: {list(targets)}; expected some of the options "
                f"{list(options)}"
            )
    elif kind == "multiple_choice":
        raise ValueError(f"{record.where}: options: null; a multiple_choice task needs them")
    rationale = record.text("rationale") if record.get("rationale") is not None else None
    if cot_exemplar and rationale is None:
        raise ValueError(
            f"{record.where}: rationale: null; an exemplar of a task with cot=true needs one"
        )
    return Item(
        id=record.text("id"),
        input=record.text("input"),
        targets=targets,
        options=options,
        rationale=rationale,
    )


def _refuse_leaks(items: tuple[Item, ...], exemplars: tuple[Item, ...], file: Path) -> None:
    asked = {item.input: item.id for item in items}
    for number, exemplar in enumerate(exemplars, start=1):
        if exemplar.input in asked:
            raise ValueError(
                f"{file}:{number}: input: the same as item {asked[exemplar.input]!r}; a few-shot "
                "prompt would show the answer"
            )
