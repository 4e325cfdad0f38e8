"""Rows of JSON: a file with one list of objects, or with one object per line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flan_moe.data.readers.compressed import packed_lines, plain_bytes
from flan_moe.data.readers.record import RawDataError, refuse_surrogates

LINES = (".jsonl", ".jsonlines", ".ndjson")


def json_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file, each with where it stands, for errors.

    A file named ``.jsonl`` or ``.jsonlines`` holds one object per line, any other a list of them;
    ``.gz`` and ``.xz`` after that are decompressed.

    Raises:
        RawDataError: The file is missing, truncated or not such JSON; names the line or row.
    """
    if file.name.removesuffix(".gz").removesuffix(".xz").endswith(LINES):
        for number, line in packed_lines(file):
            yield from _checked(f"{file}:{number}", _parsed(line, f"{file}:{number}"))
        return
    rows = _parsed(plain_bytes(file), str(file))
    if not isinstance(rows, list):
        raise RawDataError(f"{file}: {type(rows).__name__}; expected a list of objects")
    for number, row in enumerate(rows):
        yield from _checked(f"{file}: row {number}", row)


def text_of(row: dict[str, Any], key: str, where: str) -> str:
    """A text of a row, without outer blanks.

    Raises:
        RawDataError: It is not there, or no text a tokenizer takes.
    """
    value = row.get(key)
    if not isinstance(value, str):
        raise RawDataError(f"{where}: {key} is {value!r}; expected text")
    refuse_surrogates(f"{where}: {key}", value)
    return value.strip()


def _parsed(data: bytes, where: str) -> Any:
    try:
        return json.loads(data)
    except UnicodeDecodeError as error:
        raise RawDataError(f"{where}: not UTF-8: {error}") from error
    except (ValueError, RecursionError) as error:
        raise RawDataError(f"{where}: not valid JSON: {error}; is the file truncated?") from error


def _checked(where: str, row: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(row, dict):
        raise RawDataError(f"{where}: {type(row).__name__}; expected an object")
    yield where, row
