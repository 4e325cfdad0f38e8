"""Which tasks a folder of templates and raw rows makes, and their records."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from flan_moe.data.readers.json_rows import json_rows
from flan_moe.data.readers.promptsource.raw_rows import raw_layouts
from flan_moe.data.readers.promptsource.rendering import PromptRenderer
from flan_moe.data.readers.promptsource.templates import (
    FILE,
    PromptTemplate,
    TemplateFile,
    read_templates,
)
from flan_moe.data.readers.promptsource.work import TemplateTooCostlyError
from flan_moe.data.readers.record import (
    RawDataError,
    RawTask,
    Record,
    keep_usable,
    refuse_surrogates,
)

ROW_FILES = ("train*.jsonl", "train*.jsonl.gz", "train*.jsonl.xz")
QUESTION_COLUMNS = ("question", "question_stem")
# What a question is about; two questions with the same words about different texts are different.
CONTEXT_COLUMNS = (
    "context",
    "passage",
    "article",
    "background",
    "situation",
    "plot",
    "para",
    "support",
)

Rows = Callable[[], Iterator[tuple[str, dict[str, Any]]]]


@dataclass(frozen=True, kw_only=True)
class T0Task:
    """A template and the rows it is for.

    Attributes:
        name: As in the Flan collection.
        template: The template.
        files: Where the rows are.
        rows: Reads them, each with where it stands.
    """

    name: str
    template: PromptTemplate
    files: tuple[Path, ...]
    rows: Rows


def t0_tasks(folder: str | Path) -> list[T0Task]:
    """The tasks of every template file under a folder that has rows there as well.

    Rows are in ``.../DATASET[/SUBSET]/train*.jsonl(.gz|.xz)``, with the columns that the data set
    has on the hub, or in the files that the authors of CoS-E and WebQuestions published.

    Raises:
        RawDataError: A template file is damaged, or no rows are found for any.
    """
    folder = Path(folder)
    sets = [read_templates(file) for file in sorted(folder.rglob(FILE))]
    tasks = []
    for one in sets:
        files, rows = _rows(folder, one)
        for template in one.templates if files else ():
            task = T0Task(name=one.task(template), template=template, files=files, rows=rows)
            tasks.append(task)
    if not tasks:
        raise RawDataError(
            f"{folder}: expected promptsource files {FILE} and, for at least one of the "
            f"{len(sets)} found, rows in DATASET[/SUBSET]/train*.jsonl"
        )
    return tasks


def _rows(folder: Path, one: TemplateFile) -> tuple[tuple[Path, ...], Rows]:
    place = "/".join(part for part in (one.dataset, one.subset) if part)
    files = sorted(file for pattern in ROW_FILES for file in folder.rglob(f"{place}/{pattern}"))
    if files:
        return tuple(files), _JsonRows(files=tuple(files))
    found = raw_layouts(folder, one.dataset, one.subset)
    return (found.files, found) if found is not None else ((), _JsonRows(files=()))


@dataclass(frozen=True, kw_only=True)
class _JsonRows:
    """Rows of jsonl files, as they are."""

    files: tuple[Path, ...]

    def __call__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for file in self.files:
            yield from json_rows(file)


def read_t0_task(task: T0Task, seed: int = 0) -> RawTask:
    """Apply a template to its rows.

    Rows for which the template has no prompt or no target are counted and left out, as in P3; so
    are rows that its own expressions fail for.

    Args:
        task: From `t0_tasks`.
        seed: Of the template's random choices.

    Raises:
        RawDataError: A row file is damaged, the template does not fit the rows, is refused or works
            too much, or fails for every row.
    """
    renderer = PromptRenderer(task.template)
    records: list[Record] = []
    dropped: Counter[str] = Counter()
    first_failure = ""
    number = -1
    for number, (where, row) in enumerate(task.rows()):
        renderer.check_columns(row)
        try:
            made = renderer.apply(row, Random(f"{seed}/{task.name}/{number}"))
        except TemplateTooCostlyError as error:
            raise RawDataError(
                f"{task.template.file}: template {task.template.name!r}: {error}, at {where}"
            ) from error
        except Exception as error:  # whatever an expression of the template can raise
            first_failure = first_failure or f"; first {type(error).__name__}: {error}, at {where}"
            dropped["template fails on the row"] += 1
            continue
        if len(made.parts) != 2 or not all(made.parts):
            dropped["template has no prompt or target for the row"] += 1
            continue
        prompt, target = made.parts
        refuse_surrogates(where, prompt, target)
        choices = made.choices if made.choices and target in made.choices else None
        record = Record(
            input=bare_problem(row), targets=(target,), fields=(("text", prompt),), options=choices
        )
        records.append(record)
    kept, repeated = keep_usable(records)
    if not kept:
        raise RawDataError(
            f"{task.template.file}: template {task.template.name!r}: no usable row among "
            f"{number + 1}{first_failure}"
        )
    return RawTask(
        name=task.name,
        file=task.files[0],
        definition=None,
        examples=(),
        records=kept,
        read=number + 1,
        dropped=dropped + repeated,
        wordings="rendered",
        options_listed=task.template.choices_in_prompt,
    )


def bare_problem(row: Mapping[str, Any]) -> str:
    """What a row asks, whatever the template: its question, after the text that it is about.

    Rows without a question column stand for themselves.
    """
    question = next((row[key] for key in QUESTION_COLUMNS if isinstance(row.get(key), str)), None)
    if question is None:
        return json.dumps(row, ensure_ascii=False, sort_keys=True)
    context = [row[key] for key in CONTEXT_COLUMNS if isinstance(row.get(key), str)]
    return "\n".join([*context, question]).strip()
