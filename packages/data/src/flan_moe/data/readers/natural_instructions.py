"""Natural Instructions v2 task files: one JSON object per task.

Used are ``Definition`` (list of strings), ``Positive Examples`` (objects with ``input`` and
``output``) and ``Instances`` (objects with ``input`` and a list of right ``output``)
(github.com/allenai/natural-instructions, task schema).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flan_moe.data.readers.listing import files_under, has_folder, inside
from flan_moe.data.readers.location import RawFile, as_file
from flan_moe.data.readers.record import (
    RawDataError,
    RawTask,
    Record,
    keep_usable,
    refuse_surrogates,
)


def natural_instructions_files(path: str | Path) -> list[RawFile]:
    """The task files of a folder (or of its ``tasks`` folder), or the one file given."""
    if not str(path).endswith(".json") and has_folder(path, "tasks"):
        path = inside(path, "tasks")
    return files_under(path, "task*.json", "a Natural Instructions task file")


def read_natural_instructions_task(file: str | RawFile) -> RawTask:
    """Read a task file; the task is named after it.

    Raises:
        RawDataError: The file is truncated, not JSON, or not a task; names the record.
    """
    file = as_file(file)
    return natural_instructions_task(_parse(file), name=file.stem, file=file, where=str(file))


def natural_instructions_task(
    task: dict[str, Any], *, name: str, file: RawFile, where: str
) -> RawTask:
    """A task of this schema, wherever its JSON object was.

    Args:
        task: The object.
        name: Of the task.
        file: Where it was read.
        where: The same for people, with a line number if there is one.

    Raises:
        RawDataError: The object is not a task; names the record.
    """
    definition = "\n".join(_texts(task, "Definition", where)).strip()
    solved = [
        (record, entry.get("explanation"))
        for record, entry in zip(
            _records(task, "Positive Examples", where), task["Positive Examples"], strict=True
        )
        if record.input and record.targets[0]
    ]
    read = list(_records(task, "Instances", where))
    records, dropped = keep_usable(read)
    if not records:
        raise RawDataError(f"{where}: Instances: no usable record among {len(read)}")
    for number, (_, explanation) in enumerate(solved):
        if isinstance(explanation, str):
            refuse_surrogates(f"{where}: Positive Examples[{number}]", explanation)
    return RawTask(
        name=name,
        file=file,
        definition=definition,
        examples=tuple((record.input, record.targets[0]) for record, _ in solved),
        explanations=tuple(why.strip() if isinstance(why, str) else "" for _, why in solved),
        records=records,
        read=len(read),
        dropped=dropped,
    )


def _parse(file: RawFile) -> dict[str, Any]:
    try:
        task = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise RawDataError(f"{file}: no such file") from None
    except json.JSONDecodeError as error:
        raise RawDataError(
            f"{file}:{error.lineno}: not valid JSON at column {error.colno}: {error.msg}; is the "
            "file truncated?"
        ) from error
    except UnicodeDecodeError as error:
        raise RawDataError(f"{file}: not UTF-8: {error}") from error
    except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets
        raise RawDataError(f"{file}: not a task: {error}") from error
    if not isinstance(task, dict):
        raise RawDataError(f"{file}: {type(task).__name__}; expected a JSON object with a task")
    return task


def _list(task: dict[str, Any], key: str, where: str) -> list[Any]:
    if not isinstance(task.get(key), list):
        raise RawDataError(f"{where}: {key}: missing or not a list; expected a list")
    return task[key]


def _texts(task: dict[str, Any], key: str, where: str) -> list[str]:
    texts = _list(task, key, where)
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise RawDataError(f"{where}: {key}: expected one or more non-empty strings")
    refuse_surrogates(f"{where}: {key}", *texts)
    return texts


def _records(task: dict[str, Any], key: str, where: str) -> Iterator[Record]:
    for number, entry in enumerate(_list(task, key, where)):
        place = f"{where}: {key}[{number}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("input"), str):
            raise RawDataError(f"{place}: expected an object with a string 'input'")
        outputs = entry.get("output")
        outputs = [outputs] if isinstance(outputs, str) else outputs
        strings = isinstance(outputs, list) and all(isinstance(output, str) for output in outputs)
        if not strings or not outputs:
            raise RawDataError(f"{place}: output: expected a string or a list of strings")
        refuse_surrogates(place, entry["input"], *outputs)
        targets = tuple(output.strip() for output in outputs)
        yield Record(
            input=entry["input"].strip(),
            targets=tuple(dict.fromkeys(target for target in targets if target)) or ("",),
        )
