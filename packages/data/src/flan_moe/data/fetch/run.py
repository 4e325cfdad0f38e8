"""Fetches an entry of the catalogue: many files at a time, or from one archive."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from flan_moe.data.fetch.archive import extract_archive
from flan_moe.data.fetch.catalogue import CatalogueEntry, CatalogueFile
from flan_moe.data.fetch.content import difference
from flan_moe.data.fetch.download import PART, FetchError, Patience, download
from flan_moe.data.storage.directory_lock import locked_directory

SOURCE_FILE = "SOURCE.json"
ROOM_TO_SPARE = 1 << 20
REPORT_FILES = 100  # between progress lines


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """How to fetch.

    Attributes:
        base_url: A mirror, instead of the entry's address.
        only: Patterns of the files' names below the entry's directory; all files if empty.
        workers: Files at a time.
        patience: With each of them.
    """

    base_url: str | None = None
    only: tuple[str, ...] = ()
    workers: int = 8
    patience: Patience = field(default_factory=Patience)

    def __post_init__(self) -> None:
        """Check the number.

        Raises:
            ValueError: There are no workers.
        """
        if self.workers < 1:
            raise ValueError(f"workers is {self.workers}; expected 1 or more")


@dataclass(frozen=True, kw_only=True)
class FetchResult:
    """What was done.

    Attributes:
        there: Files that were there and right.
        fetched: Files that were brought.
        received: Bytes that came over the network.
    """

    there: int
    fetched: int
    received: int


def fetch(
    entry: CatalogueEntry,
    out: str | Path,
    options: FetchOptions | None = None,
    *,
    report: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> FetchResult:
    """Bring the files of an entry to ``out/<name>``; those that are there and right stay.

    Args:
        entry: Of the catalogue.
        out: The directory above.
        options: How.
        report: Told about progress and terms, line by line.

    Raises:
        BlockingIOError: Another process fetches to the same place.
        FetchError: A file cannot be brought. What came of the others stays, and is gone on with.
        ValueError: No file matches the patterns.
    """
    options = options or FetchOptions()
    directory, wanted = _begin(entry, Path(out), options.only, report)
    with locked_directory(directory):
        missing = _missing(directory, wanted)
        _check_room(directory, missing)
        received = 0
        for number, size in enumerate(_all(entry, directory, missing, options), start=1):
            received += size
            if number % REPORT_FILES == 0:
                report(f"  {number} of {len(missing)} files, {received:,} bytes")
        return _end(entry, directory, wanted, missing, received, report)


def fetch_from_archive(
    entry: CatalogueEntry,
    out: str | Path,
    archive: str | Path,
    options: FetchOptions | None = None,
    *,
    report: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> FetchResult:
    """As `fetch`, with the files taken out of an archive of the repository.

    Args:
        entry: Of the catalogue.
        out: The directory above.
        archive: A tar or zip file, or the http address of one. The files lie in it below one
            folder, as code hosts pack them, or without.
        options: How.
        report: Told about progress and terms, line by line.

    Raises:
        ArchiveError: The archive is damaged or has members that are refused.
        FetchError: It cannot be brought, lacks a file, or has another one under its name.
        ValueError: No file matches the patterns.
    """
    options = options or FetchOptions()
    directory, wanted = _begin(entry, Path(out), options.only, report)
    with locked_directory(directory):
        missing = _missing(directory, wanted)
        received = 0
        if missing:
            _check_room(directory, missing)
            with _local_archive(str(archive), directory, options) as (file, received):
                _take(file, str(archive), directory, missing)
        return _end(entry, directory, wanted, missing, received, report)


def _begin(
    entry: CatalogueEntry, out: Path, only: tuple[str, ...], report: Callable[[str], None]
) -> tuple[Path, list[CatalogueFile]]:
    wanted = [
        file
        for file in entry.files
        if not only or any(fnmatch(file.save_as, pattern) for pattern in only)
    ]
    if not wanted:
        raise ValueError(f"{entry.name}: none of its {len(entry.files)} files match {only[0]!r}")
    report(f"{entry.name}: {entry.title}")
    report(f"  from {entry.repository} at {entry.commit[:10]}; licence: {entry.licence}")
    if entry.notice:
        report(f"  note: {entry.notice}")
    directory = out / entry.name
    directory.mkdir(parents=True, exist_ok=True)
    return directory, wanted


def _missing(directory: Path, wanted: list[CatalogueFile]) -> list[CatalogueFile]:
    """The files that are not there, or not right."""
    return [
        file
        for file in wanted
        if not (path := directory / file.save_as).is_file() or difference(path, file)
    ]


def _check_room(directory: Path, missing: list[CatalogueFile]) -> None:
    """Refuse to begin what cannot end.

    Raises:
        FetchError: There is less room than the files need, as far as their sizes are known.
    """
    parts = (directory / (file.save_as + PART) for file in missing)
    have = sum(part.stat().st_size for part in parts if part.is_file())
    need = sum(file.bytes or 0 for file in missing) - have
    free = shutil.disk_usage(directory).free
    if missing and need + ROOM_TO_SPARE > free:
        raise FetchError(f"{directory}: {free:,} bytes are free; {need:,} are needed")


def _all(
    entry: CatalogueEntry, directory: Path, missing: list[CatalogueFile], options: FetchOptions
) -> Iterator[int]:
    """Download all; yields the bytes received for each file. The first failure ends it."""
    given_up = threading.Event()

    def one(file: CatalogueFile) -> int:
        if given_up.is_set():
            raise FetchError(f"{file.save_as}: given up")
        path = directory / file.save_as
        path.parent.mkdir(parents=True, exist_ok=True)
        return download(
            entry.url(file, options.base_url),
            path,
            wrong=partial(difference, expected=file),
            size=file.bytes,
            patience=options.patience,
            stopped=given_up.is_set,
        )

    with ThreadPoolExecutor(options.workers) as pool:
        pending = {pool.submit(one, file) for file in missing}
        try:
            while pending:
                done, pending = wait(pending, timeout=1.0, return_when=FIRST_EXCEPTION)
                yield from (future.result() for future in done)
        finally:
            given_up.set()
            for future in pending:
                future.cancel()


@contextmanager
def _local_archive(
    archive: str, directory: Path, options: FetchOptions
) -> Iterator[tuple[Path, int]]:
    if "://" not in archive:
        if not Path(archive).is_file():
            raise FetchError(f"{archive}: no such file")
        yield Path(archive), 0
        return
    name = archive.partition("?")[0].rstrip("/").rpartition("/")[2]
    name = (
        name if name.endswith((".zip", ".tar", ".gz", ".tgz", ".xz", ".bz2")) else name + ".tar.gz"
    )
    path = directory / f".{name}"
    # Nothing is known of the archive itself; every file in it is checked.
    received = download(archive, path, wrong=lambda part: None, patience=options.patience)
    try:
        yield path, received
    finally:
        path.unlink(missing_ok=True)


def _take(archive: Path, shown: str, directory: Path, missing: list[CatalogueFile]) -> None:
    by_path = {file.path: file for file in missing}

    def rename(path: PurePosixPath) -> str | None:
        for name in (str(path), str(PurePosixPath(*path.parts[1:]))):
            if name in by_path:
                return name
        return None

    with TemporaryDirectory(prefix=".unpacking-", dir=directory) as temporary:
        unpacked = Path(temporary) / "files"
        extract_archive(archive, unpacked, rename=rename)
        for file in missing:
            path = unpacked / file.path
            if not path.is_file():
                raise FetchError(f"{shown}: has no {file.path}")
            if problem := difference(path, file):
                raise FetchError(f"{shown}: {file.path}: {problem}")
        for file in missing:
            target = directory / file.save_as
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(unpacked / file.path, target)


def _end(
    entry: CatalogueEntry,
    directory: Path,
    wanted: list[CatalogueFile],
    missing: list[CatalogueFile],
    received: int,
    report: Callable[[str], None],
) -> FetchResult:
    _write_source(entry, directory)
    result = FetchResult(there=len(wanted) - len(missing), fetched=len(missing), received=received)
    report(
        f"{directory}: {result.fetched} files fetched ({received:,} bytes), {result.there} were "
        "there and right"
    )
    return result


def _write_source(entry: CatalogueEntry, directory: Path) -> None:
    """What a later reader wants to know of the files: where they come from, and the terms."""
    keys = ("name", "title", "repository", "commit", "licence", "notice", "evaluation_only")
    content = {key: getattr(entry, key) for key in keys}
    temporary = directory / f".{SOURCE_FILE}.{os.getpid()}"
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    os.replace(temporary, directory / SOURCE_FILE)
