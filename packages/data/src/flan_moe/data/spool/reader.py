"""Reads a finished spool task by task."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flan_moe.data.json_types import check_types
from flan_moe.data.readers.errors import RawDataError
from flan_moe.data.spool.ingest import PARTS, SPOOL_FILE
from flan_moe.data.spool.options import VERSION
from flan_moe.data.spool.part import Block, read_blocks, read_record


@dataclass(frozen=True, kw_only=True)
class SpoolTask:
    """One task of a spool.

    Attributes:
        mixture: The stored mixture.
        task: Name of the task.
        settings: Setting of prompts, then the number of rows.
        places: The parts' files with the task's blocks in them, in the order of the input files.
    """

    mixture: str
    task: str
    settings: Mapping[str, int]
    places: tuple[tuple[Path, tuple[Block, ...]], ...]

    @property
    def count(self) -> int:
        """Number of rows."""
        return sum(self.settings.values())

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Template, prompt and target of every row, in the order of the input files.

        Raises:
            RawDataError: A part is damaged.
        """
        for file, blocks in self.places:
            yield from read_blocks(file, blocks)


def spool_tasks(spool: str | Path) -> list[SpoolTask]:
    """The tasks of a spool, sorted by mixture and name.

    Raises:
        RawDataError: It is not a spool, not finished, or a part is missing or truncated.
    """
    spool = Path(spool)
    settings: dict[tuple[str, str], Counter[str]] = {}
    places: dict[tuple[str, str], list[tuple[Path, tuple[Block, ...]]]] = {}
    for entry in _index(spool)["parts"]:
        rows = spool / PARTS / f"{entry['key']}.rows"
        size = rows.stat().st_size if rows.is_file() else None
        if size != entry["bytes"]:
            found = "missing" if size is None else f"{size} bytes"
            raise RawDataError(f"{rows}: {found}; expected {entry['bytes']} bytes")
        record = read_record(rows.with_suffix(".json"))
        if (record.key, record.rows_sha256) != (entry["key"], entry["sha256"]):
            raise RawDataError(f"{rows.with_suffix('.json')}: not the record that {spool} names")
        for task in record.tasks:
            key = (task.mixture, task.task)
            settings.setdefault(key, Counter()).update(task.settings)
            places.setdefault(key, []).append((rows, task.blocks))
    return [
        SpoolTask(
            mixture=mixture,
            task=task,
            settings=dict(sorted(settings[mixture, task].items())),
            places=tuple(places[mixture, task]),
        )
        for mixture, task in sorted(settings)
    ]


def _index(spool: Path) -> dict[str, Any]:
    file = spool / SPOOL_FILE
    try:
        index = json.loads(file.read_bytes())
        check_types(index, {"version": int, "parts": tuple[Any, ...]})
        for number, entry in enumerate(index["parts"]):
            check_types(entry, {"key": str, "bytes": int, "sha256": str}, f"parts[{number}].")
            if not entry["key"].isalnum():
                raise ValueError(f"parts[{number}].key is {entry['key']!r}; expected a plain name")
    except FileNotFoundError:
        unfinished = (spool / PARTS).is_dir()
        why = "unfinished; run ingest again" if unfinished else "no spool; run ingest first"
        raise RawDataError(f"{spool}: {why}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise RawDataError(f"{file}: not the index of a spool: {error}") from error
    if index["version"] != VERSION:
        raise RawDataError(f"{file}: version {index['version']}; expected {VERSION}")
    return index
