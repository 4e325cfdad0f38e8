"""Which raw tasks the given files and folders hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from flan_moe.data.readers import (
    RawTask,
    cot_files,
    cot_task_name,
    jsonl_files,
    jsonl_task_name,
    natural_instructions_files,
    read_cot_task,
    read_jsonl_task,
    read_natural_instructions_task,
)
from flan_moe.data.readers.cot_stand_ins import cot_stand_ins as find_cot_stand_ins
from flan_moe.data.readers.cot_stand_ins import read_cot_stand_in
from flan_moe.data.readers.location import RawFile
from flan_moe.data.readers.muffin import muffin_files, read_muffin_task
from flan_moe.data.readers.natural_instructions_lines import (
    holds_task_lines,
    read_task_line,
    task_lines,
)
from flan_moe.data.readers.promptsource import read_t0_task, t0_tasks


@dataclass(frozen=True, kw_only=True)
class FoundTask:
    """A raw task that can be read.

    Attributes:
        name: Of the task.
        mixture: Where it belongs.
        files: What it is read from.
        read: Reads it. Can be sent to another process.
    """

    name: str
    mixture: str
    files: tuple[RawFile, ...]
    read: Callable[[], RawTask] = field(repr=False)


def found_tasks(
    *,
    natural_instructions: str | Path | None,
    cot: str | Path | None,
    cot_stand_ins: str | Path | None,
    muffin: str | Path | None,
    t0_sf: str | Path | None,
    jsonl: str | Path | None,
    stand_ins: bool,
    seed: int,
) -> Iterator[FoundTask]:
    """The tasks of all paths that are given; see `flan_moe.data.sources.raw.raw_sources`.

    Raises:
        RawDataError: A path holds no such file.
    """
    if muffin is not None:
        for group in muffin_files(muffin, stand_ins=stand_ins):
            yield FoundTask(
                name=group.found.task,
                mixture="muffin",
                files=tuple(file for file, _ in group.files),
                read=partial(read_muffin_task, group),
            )
    for prompted in t0_tasks(t0_sf) if t0_sf is not None else ():
        yield FoundTask(
            name=prompted.name,
            mixture="t0_sf",
            files=(prompted.template.file, *prompted.files),
            read=partial(read_t0_task, prompted, seed),
        )
    if natural_instructions is not None:
        yield from _natural_instructions(natural_instructions)
    for file in cot_files(cot) if cot is not None else ():
        yield FoundTask(
            name=cot_task_name(file),
            mixture="cot",
            files=(file,),
            read=partial(read_cot_task, file),
        )
    for other in find_cot_stand_ins(cot_stand_ins) if cot_stand_ins is not None else ():
        yield FoundTask(
            name=other.name,
            mixture="cot",
            files=other.files,
            read=partial(read_cot_stand_in, other),
        )
    for file in jsonl_files(jsonl) if jsonl is not None else ():
        yield FoundTask(
            name=jsonl_task_name(file),
            mixture="jsonl",
            files=(file,),
            read=partial(read_jsonl_task, file),
        )


def _natural_instructions(path: str | Path) -> Iterator[FoundTask]:
    if holds_task_lines(path):
        for line in task_lines(path):
            yield FoundTask(
                name=line.name,
                mixture="niv2",
                files=(line.file,),
                read=partial(read_task_line, line),
            )
        return
    for file in natural_instructions_files(path):
        yield FoundTask(
            name=file.stem,
            mixture="niv2",
            files=(file,),
            read=partial(read_natural_instructions_task, file),
        )
