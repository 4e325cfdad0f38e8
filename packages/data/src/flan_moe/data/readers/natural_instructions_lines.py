"""Many Natural Instructions tasks in one file: a task object per line, with its name in ``task``.

``.jsonl``, or the same as ``.jsonl.gz`` or ``.jsonl.xz``. Compressed files cannot be read from the
middle, so the lines are kept in memory, each compressed by itself: about as much as the file takes.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flan_moe.data.readers.compressed import packed_lines
from flan_moe.data.readers.location import RawFile, as_file
from flan_moe.data.readers.natural_instructions import natural_instructions_task
from flan_moe.data.readers.record import RawDataError, RawTask

ENDS = (".jsonl", ".jsonl.gz", ".jsonl.xz")


@dataclass(frozen=True, kw_only=True)
class TaskLine:
    """One line of such a file.

    Attributes:
        name: Of the task.
        file: Where it stands.
        number: In which line.
        packed: The line, compressed.
    """

    name: str
    file: RawFile
    number: int
    packed: bytes = field(repr=False)


def holds_task_lines(path: str | Path) -> bool:
    """Whether a path is named like a file of tasks, one per line."""
    return str(path).endswith(ENDS)


def task_lines(file: str | RawFile) -> list[TaskLine]:
    """The tasks of a file, in its order.

    Raises:
        RawDataError: The file is damaged, a line is no object with a name in ``task``, or a name
            comes twice; names the line.
    """
    file = as_file(file)
    lines: dict[str, TaskLine] = {}
    for number, line in packed_lines(file):
        name = _task(line, f"{file}:{number}")["task"]
        if name in lines:
            raise RawDataError(
                f"{file}:{number}: task {name!r} is in line {lines[name].number} already"
            )
        lines[name] = TaskLine(name=name, file=file, number=number, packed=zlib.compress(line))
    if not lines:
        raise RawDataError(f"{file}: no lines; expected one Natural Instructions task in each")
    return list(lines.values())


def read_task_line(line: TaskLine) -> RawTask:
    """The task of a line.

    Raises:
        RawDataError: The object is not a task; names the line and the record.
    """
    where = f"{line.file}:{line.number}"
    task = _task(zlib.decompress(line.packed), where)
    return natural_instructions_task(task, name=line.name, file=line.file, where=where)


def _task(line: bytes, where: str) -> dict[str, Any]:
    try:
        task = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RawDataError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(task, dict) or not isinstance(task.get("task"), str) or not task["task"]:
        raise RawDataError(f"{where}: expected an object with the task's name in 'task'")
    return task
