"""Sorts templated files by task, many files at a time; a killed run goes on where it was.

Each input file becomes one part, whatever process reads it, so that the spool does not depend on
how many there are. ``spool.json`` is written when all files are in.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flan_moe.data.readers.errors import RawDataError
from flan_moe.data.readers.location import fingerprint
from flan_moe.data.readers.templated import TemplatedFile, templated_files
from flan_moe.data.spool.options import VERSION, IngestOptions
from flan_moe.data.spool.part import PartRecord, part_key, read_record
from flan_moe.data.spool.progress import Progress
from flan_moe.data.spool.workers import read_parts
from flan_moe.data.storage.directory_lock import locked_directory

SPOOL_FILE = "spool.json"
SETTINGS_FILE = "settings.json"
PARTS = "parts"


@dataclass(frozen=True, kw_only=True)
class IngestResult:
    """What is in a spool.

    Attributes:
        files: Number of input files.
        read: Rows in them.
        kept: Rows in the spool.
        dropped: Reason, then the number of rows left out; with ``kept`` they add up to ``read``.
        tasks: Mixture and task, then the number of rows.
    """

    files: int
    read: int
    kept: int
    dropped: Mapping[str, int]
    tasks: Mapping[tuple[str, str], int]


def ingest(
    locations: Sequence[str | Path],
    spool: str | Path,
    options: IngestOptions | None = None,
    *,
    progress: Callable[[int, int], Progress] = Progress,
) -> IngestResult:
    """Read templated files and sort their rows by task into a spool.

    Run again after a kill, it reads only the files that are missing. Run again with more locations,
    it adds theirs.

    Args:
        locations: Paths or fsspec addresses of files or folders.
        spool: The directory to make.
        options: How.
        progress: Given the number of files and of those read before, what is told of progress.

    Raises:
        RawDataError: A location holds no such file, a file cannot be read, or no row is usable.
            What other files gave stays for the next run.
        ValueError: The spool was begun with other options, or is of other files.
        BlockingIOError: Another process writes to the spool.
    """
    options = options or IngestOptions()
    spool = Path(spool)
    files = _found(locations)
    _check_directory(spool)
    (spool / PARTS).mkdir(parents=True, exist_ok=True)
    with locked_directory(spool):
        _check_settings(spool, options)
        done = _finished(spool, files)
        missing = [file for file in files if part_key(str(file.file)) not in done]
        if missing:
            (spool / SPOOL_FILE).unlink(missing_ok=True)
        _remove_leftovers(spool)
        shown = progress(len(files), len(files) - len(missing))
        try:
            for record in read_parts(missing, spool / PARTS, options, shown):
                done[record.key] = record
        finally:
            shown.close()
            _remove_leftovers(spool)
        records = [done[part_key(str(file.file))] for file in files]
        result = _summary(records)
        if not result.kept:
            reasons = ", ".join(f"{reason}: {n}" for reason, n in result.dropped.items())
            raise RawDataError(
                f"{', '.join(map(str, locations))}: no usable row among {result.read} "
                f"({reasons or 'the files are empty'})"
            )
        _write_json(spool / SPOOL_FILE, _index(records, result))
    return result


def _found(locations: Sequence[str | Path]) -> list[TemplatedFile]:
    """All files, each once, in the order of their locations' text."""
    if not locations:
        raise ValueError("no locations; expected at least one file or folder")
    found: dict[str, TemplatedFile] = {}
    for location in locations:
        for source in templated_files(location):
            file = source.file.resolve() if isinstance(source.file, Path) else source.file
            found.setdefault(str(file), TemplatedFile(file, source.path))
    return [found[name] for name in sorted(found)]


def _check_directory(spool: Path) -> None:
    if spool.is_dir() and any(spool.iterdir()) and not (spool / SETTINGS_FILE).is_file():
        raise FileExistsError(f"{spool} is not empty and no spool; choose another place")
    if spool.exists() and not spool.is_dir():
        raise FileExistsError(f"{spool} is not a directory; choose another place")


def _remove_leftovers(spool: Path) -> None:
    """What a process was writing when it was killed. We hold the lock: nobody writes now."""
    for file in (spool / PARTS).glob(".*.tmp"):
        file.unlink(missing_ok=True)


def _check_settings(spool: Path, options: IngestOptions) -> None:
    file, now = spool / SETTINGS_FILE, options.record()
    if not file.exists():
        _write_json(file, now)
        return
    try:
        before = json.loads(file.read_bytes())
    except ValueError as error:
        raise RawDataError(f"{file}: not JSON: {error}") from error
    for key, value in now.items():
        if before.get(key) != value:
            raise ValueError(
                f"{spool} was begun with {key} {before.get(key)!r}, now it is {value!r}; give the "
                "same, or choose another place"
            )


def _finished(spool: Path, files: Sequence[TemplatedFile]) -> dict[str, PartRecord]:
    """The records of an earlier run that still hold.

    Raises:
        ValueError: The spool has a file that is not among those asked for.
    """
    wanted = {part_key(str(file.file)): file for file in files}
    records = {}
    for path in sorted((spool / PARTS).glob("*.json")):
        record = read_record(path)
        if record.key not in wanted:
            raise ValueError(
                f"{spool} has the rows of {record.source}, which is not among the files given; "
                "give it too, or choose another place"
            )
        rows = path.with_suffix(".rows")
        now = fingerprint(wanted[record.key].file)
        same = (now["bytes"], now["version"]) == (record.source_bytes, record.source_version)
        if same and rows.is_file() and rows.stat().st_size == record.rows_bytes:
            records[record.key] = record
    return records


def _summary(records: Collection[PartRecord]) -> IngestResult:
    dropped: Counter[str] = Counter()
    tasks: Counter[tuple[str, str]] = Counter()
    for record in records:
        dropped.update(record.dropped)
        for task in record.tasks:
            tasks[task.mixture, task.task] += sum(task.settings.values())
    return IngestResult(
        files=len(records),
        read=sum(record.read for record in records),
        kept=sum(record.kept for record in records),
        dropped=dict(sorted(dropped.items())),
        tasks=dict(sorted(tasks.items())),
    )


def _index(records: Sequence[PartRecord], result: IngestResult) -> dict[str, Any]:
    return {
        "version": VERSION,
        "read": result.read,
        "kept": result.kept,
        "dropped": result.dropped,
        "parts": [
            {"key": record.key, "bytes": record.rows_bytes, "sha256": record.rows_sha256}
            for record in records
        ],
    }


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
        os.replace(temporary, file)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
