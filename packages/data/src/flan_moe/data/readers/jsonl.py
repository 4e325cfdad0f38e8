"""Plain jsonl: one object per line with the strings ``prompt`` and ``target``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from flan_moe.data.readers.listing import files_under
from flan_moe.data.readers.location import RawFile, as_file
from flan_moe.data.readers.record import (
    RawDataError,
    RawTask,
    Record,
    keep_usable,
    refuse_surrogates,
    whole_lines,
)


def jsonl_files(path: str | Path) -> list[RawFile]:
    """The ``.jsonl`` and ``.jsonl.gz`` files of a folder, or the one file given."""
    return files_under(path, "*.jsonl *.jsonl.gz", "a .jsonl file")


def jsonl_task_name(file: RawFile) -> str:
    """The file's name without ``.jsonl`` or ``.jsonl.gz``."""
    return as_file(file.name.removesuffix(".gz")).stem


def read_jsonl_rows(file: str | RawFile) -> Iterator[Record]:
    """The rows of a file, one at a time.

    Raises:
        RawDataError: A line is not such an object, or the file is truncated; names the line.
    """
    for number, line in whole_lines(as_file(file)):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RawDataError(f"{file}:{number}: not valid JSON: {error}") from error
        prompt, target = (
            (row.get("prompt"), row.get("target")) if isinstance(row, dict) else (None, None)
        )
        if not isinstance(prompt, str) or not isinstance(target, str):
            raise RawDataError(
                f"{file}:{number}: expected an object with the strings 'prompt' and 'target'"
            )
        refuse_surrogates(f"{file}:{number}", prompt, target)
        yield Record(input=prompt.strip(), targets=(target.strip(),))


def read_jsonl_task(file: str | RawFile) -> RawTask:
    """A file as one task, named after it.

    Raises:
        RawDataError: As `read_jsonl_rows`, or there is no usable row.
    """
    file = as_file(file)
    rows = list(read_jsonl_rows(file))
    records, dropped = keep_usable(rows)
    if not records:
        raise RawDataError(f"{file}: no usable row among {len(rows)}")
    return RawTask(
        name=jsonl_task_name(file),
        file=file,
        definition=None,
        examples=(),
        records=records,
        read=len(rows),
        dropped=dropped,
    )
