"""Rows that are prompts already: the dumps of the Flan collection, and P3.

Files are Parquet or jsonl, the latter also compressed; columns as in `layouts`. Rows are read one
after the other, so that a file of any size needs little memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from flan_moe.data.readers.errors import RawDataError
from flan_moe.data.readers.layouts import (
    TRAIN,
    FlanNaming,
    Layout,
    RowLabels,
    StoredTask,
    TaskNaming,
    config_of,
    find_layout,
    shortened,
    split_of,
)
from flan_moe.data.readers.listing import files_below
from flan_moe.data.readers.location import RawFile, RemoteFile, as_file
from flan_moe.data.readers.parquet import read_parquet_rows
from flan_moe.data.readers.record import refuse_surrogates, whole_lines
from flan_moe.data.template_types import ZS_OPT

PATTERNS = ("*.parquet", "*.jsonl", "*.jsonl.gz")
FORM = "templated"  # the form in an example's template; the wording is the dump's
_WORDING = re.compile(r"[\w .:+-]{1,80}", re.ASCII)
LARGEST_LABELS = 1 << 16  # different labels that are remembered with their place


class TemplatedRow(NamedTuple):
    """A usable row, and where it belongs."""

    mixture: str
    task: str
    template: str
    prompt: str
    target: str


class TemplatedFile(NamedTuple):
    """A file of rows.

    ``path`` are its folders and its name below the location that was given.
    """

    file: RawFile
    path: tuple[str, ...]


def templated_files(location: str | Path) -> list[TemplatedFile]:
    """The files at a location, and in all folders below it, sorted.

    Args:
        location: Path or fsspec address of a file or folder; with ``*`` a pattern of files.

    Raises:
        RawDataError: There is none.
    """
    place = as_file(location)
    found = files_below(location, PATTERNS, "a .parquet, .jsonl or .jsonl.gz file")
    root = _folder(place)
    return [TemplatedFile(file, _parts(file)[len(root) :] or (file.name,)) for file in found]


def read_templated_rows(
    source: TemplatedFile,
    *,
    naming: TaskNaming | None = None,
    splits: Collection[str] = (TRAIN,),
) -> Iterator[TemplatedRow | str]:
    """The rows of a file; for a row that is left out, the reason.

    Args:
        source: What `templated_files` found.
        naming: A row's labels to its task; `FlanNaming` if None.
        splits: Rows of other splits are left out.

    Raises:
        RawDataError: The columns are of no known layout, a row is malformed, or the file is
            missing, truncated, damaged or out of reach; names the file and the row.
    """
    file, path = source
    if file.name.endswith(".parquet"):
        layout: Layout | None = None

        def choose(columns: Collection[str]) -> list[str]:
            nonlocal layout
            layout = find_layout(columns, str(file))
            return layout.columns(columns)

        rows = read_parquet_rows(file, choose)
    else:
        rows = _jsonl_rows(file)
    place = lru_cache(LARGEST_LABELS)(naming or FlanNaming())
    read: Callable[[str, dict[str, Any]], TemplatedRow | str] | None = None
    for number, row in rows:
        if read is None:
            layout = find_layout(row, f"{file}:{number}")
            read = _reader(layout, path, place, frozenset(splits))
        yield read(f"{file}:{number}", row)


def _jsonl_rows(file: RawFile) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in whole_lines(file):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RawDataError(f"{file}:{number}: not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise RawDataError(f"{file}:{number}: {type(row).__name__}; expected a JSON object")
        yield number, row


def _reader(
    layout: Layout,
    path: tuple[str, ...],
    place: Callable[[RowLabels], StoredTask | str],
    splits: frozenset[str],
) -> Callable[[str, dict[str, Any]], TemplatedRow | str]:
    """The function that judges one row of a file."""
    rendered = layout.name == "P3"
    file_split = split_of(path)

    def text(where: str, row: dict[str, Any], column: str) -> str:
        if column not in row:
            raise RawDataError(f"{where}: column {column!r} is missing")
        value = row[column]
        if value is None:
            return ""
        if not isinstance(value, str):
            raise RawDataError(f"{where}: {column}: {type(value).__name__}; expected text")
        return value

    def read(where: str, row: dict[str, Any]) -> TemplatedRow | str:
        split = row.get(layout.split) if layout.split else None
        split = split if isinstance(split, str) and split else file_split
        if split not in splits:
            return f"split {shortened(split)}"
        prompt = text(where, row, layout.prompt).strip()
        target = text(where, row, layout.target).strip()
        if not prompt:
            return "empty input"
        if not target:
            return "empty answer"
        refuse_surrogates(where, prompt, target)
        labels = RowLabels(
            task=config_of(path) if rendered else text(where, row, layout.task),
            source="P3" if rendered else text(where, row, layout.source) if layout.source else "",
            setting=ZS_OPT
            if rendered
            else (text(where, row, layout.setting) if layout.setting else ""),
            path=path,
        )
        stored = place(labels)
        if isinstance(stored, str):
            return stored
        template = f"{stored.setting}/{FORM}"
        if layout.index and (index := _wording(where, row.get(layout.index), layout.index)):
            template += f"/{index}"
        return TemplatedRow(stored.mixture, stored.task, template, prompt, target)

    return read


def _wording(where: str, value: object, column: str) -> str:
    """The number or name of a wording; a column with gaps holds its numbers as fractions."""
    if value is None or value == "" or value != value:  # the last: NaN
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value) if isinstance(value, int | str) else ""
    if not _WORDING.fullmatch(text):
        raise RawDataError(f"{where}: {column} is {str(value)[:40]!r}; expected a number or a name")
    return text


def _parts(file: RawFile) -> tuple[str, ...]:
    return file.parts if isinstance(file, RemoteFile) else file.absolute().parts


def _folder(place: RawFile) -> tuple[str, ...]:
    """The parts of the deepest folder that a location names for certain.

    The last folder itself counts as told by the files below it: it often names the sub-mixture.
    """
    parts = _parts(place)
    for number, part in enumerate(parts):
        if "*" in part:
            return parts[: max(number - 1, 0)]
    return parts[:-1]
