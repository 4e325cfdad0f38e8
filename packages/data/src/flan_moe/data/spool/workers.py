"""Reads input files into parts, in this process or in several."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flan_moe.data.readers.errors import RawDataError
from flan_moe.data.readers.location import fingerprint
from flan_moe.data.readers.templated import TemplatedFile, read_templated_rows
from flan_moe.data.spool.options import IngestOptions
from flan_moe.data.spool.part import PartRecord, PartWriter
from flan_moe.data.spool.progress import Progress

REPORT_ROWS = 2000  # between reports of a worker
POLL_SECONDS = 0.2


def read_parts(
    files: Sequence[TemplatedFile], parts: Path, options: IngestOptions, progress: Progress
) -> Iterator[PartRecord]:
    """Sort files into parts; yields the record of each as it is finished.

    Args:
        files: The inputs.
        parts: Directory of the parts.
        options: How; with several workers the order of the records is that in which they end.
        progress: Told about rows and files.

    Raises:
        RawDataError: A file cannot be read, or a worker died.
    """
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
    from flan_moe.data.storage.manifest import file_sha256

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
