"""Sorts templated files by task, many files at a time; a killed run goes on where it was.

Each input file becomes one part, whatever process reads it, so that the spool does not depend on
how many there are. ``spool.json`` is written when all files are in.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from flan_moe.data.directory_lock import locked_directory
from flan_moe.data.readers.errors import RawDataError
from flan_moe.data.readers.layouts import TRAIN, FlanNaming, TaskNaming
from flan_moe.data.readers.location import fingerprint
from flan_moe.data.readers.templated import TemplatedFile, read_templated_rows, templated_files
from flan_moe.data.spool.part import PartRecord, PartWriter, part_key, read_record
from flan_moe.data.spool.progress import Progress

SPOOL_FILE = "spool.json"
SETTINGS_FILE = "settings.json"
PARTS = "parts"
VERSION = 1
REPORT_ROWS = 2000  # between reports of a worker
POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class IngestOptions:
    """How to sort.

    Attributes:
        naming: A row's labels to its task. With several workers it travels to other processes: a
            function of a module or an object of a class, not a lambda.
        splits: Rows of other splits are left out.
        workers: Processes; 1 for this one alone, None for one per CPU.
    """

    naming: TaskNaming = field(default_factory=FlanNaming)
    splits: tuple[str, ...] = (TRAIN,)
    workers: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: There are no workers, or no splits.
        """
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers is {self.workers}; expected 1 or more")
        if not self.splits:
            raise ValueError("splits is empty; expected at least one, such as 'train'")

    def record(self) -> dict[str, Any]:
        """What the rows of a part depend on."""
        naming = self.naming
        name = getattr(naming, "__qualname__", type(naming).__qualname__)
        module = getattr(naming, "__module__", type(naming).__module__)
        told = repr(naming) if is_dataclass(naming) else name
        return {
            "version": VERSION,
            "naming": f"{module}: {told}",
            "splits": sorted(self.splits),
        }


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
            for record in _read_all(missing, spool / PARTS, options, shown):
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


def _read_all(
    files: Sequence[TemplatedFile], parts: Path, options: IngestOptions, progress: Progress
) -> Iterator[PartRecord]:
    workers = min(options.workers or os.cpu_count() or 1, len(files))
    if workers <= 1:
        for file in files:
            record = read_part(file, parts, options, progress.rows)
            progress.file(str(file.file), record.read, record.kept)
            yield record
    else:
        yield from _read_parallel(files, parts, options, progress, workers)


def read_part(
    file: TemplatedFile,
    parts: Path,
    options: IngestOptions,
    report: Callable[[int], None] = lambda rows: None,
) -> PartRecord:
    """Sort one file into its part.

    Args:
        file: The input.
        parts: Directory of the parts.
        options: How.
        report: Told now and then how many more rows have been read.
    """
    before = fingerprint(file.file)
    writer = PartWriter(parts, str(file.file))
    try:
        unreported = 0
        for row in read_templated_rows(file, naming=options.naming, splits=options.splits):
            writer.add(row)
            unreported += 1
            if unreported == REPORT_ROWS:
                report(unreported)
                unreported = 0
        report(unreported)
        if fingerprint(file.file) != before:
            raise RawDataError(f"{file.file}: changed while it was read")
        return writer.commit(before, _sha256(file))
    except BaseException:
        writer.discard()
        raise


def _sha256(file: TemplatedFile) -> str | None:
    from flan_moe.data.manifest import file_sha256

    return file_sha256(file.file) if isinstance(file.file, Path) else None


# ---- several processes ----

_rows: Any = None  # in a worker: the queue of its reports
_stop: Any = None  # in a worker: whether to give up


def _start_worker(rows: Any, stop: Any) -> None:
    global _rows, _stop
    _rows, _stop = rows, stop
    # A worker whose parent is killed would wait for work for ever.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _report_or_stop(rows: int) -> None:
    if _stop.is_set():
        raise InterruptedError("another file failed, or the run was interrupted")
    _rows.put(rows)


def _work(file: TemplatedFile, parts: Path, options: IngestOptions) -> PartRecord:
    return read_part(file, parts, options, _report_or_stop)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes started meanwhile never see an interrupt; this one sees it afterwards.

    A terminal interrupts the whole group, but it is the parent that tells its workers to stop.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _read_parallel(
    files: Sequence[TemplatedFile],
    parts: Path,
    options: IngestOptions,
    progress: Progress,
    workers: int,
) -> Iterator[PartRecord]:
    context = multiprocessing.get_context("spawn")  # remote stores keep threads, which fork breaks
    rows, stop = context.SimpleQueue(), context.Event()
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(rows, stop)
    )
    try:
        with _interrupts_blocked():
            pending: dict[Future[PartRecord], TemplatedFile] = {
                pool.submit(_work, file, parts, options): file for file in files
            }
        while pending:
            done, _ = wait(pending, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            while not rows.empty():
                progress.rows(rows.get())
            for future in done:
                file = pending.pop(future)
                try:
                    record = future.result()
                except BrokenProcessPool as error:
                    raise RawDataError(
                        "a worker process died, perhaps for lack of memory, or for a naming that "
                        "it cannot import; run again to go on with the files that are missing"
                    ) from error
                progress.file(str(file.file), record.read, record.kept)
                yield record
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


# ---- what is written at the end ----


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
