"""Builds a data directory from task sources: tokenizer, shards, task tables, suite, manifest.

Tasks are opened, formed and tokenised apart from each other (`building.pieces`), in as many
processes as wanted, and then put together in order, so the bytes do not depend on who did what
when. Everything finished is kept beside the output until the whole is; a build that was stopped
goes on from there, provided that it has the same plan (`building.plan`).
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from flan_moe.data.building.attempt import BuildAttempt
from flan_moe.data.building.disk import DiskFullError
from flan_moe.data.building.options import BuildOptions
from flan_moe.data.building.pieces import DamagedPieceError
from flan_moe.data.progress import Progress, Report
from flan_moe.data.sources.task_source import TaskSource
from flan_moe.data.storage.manifest import MANIFEST_FILE, Manifest
from flan_moe.data.storage.staging import check_output_directory, resumable_directory

__all__ = ["BuildOptions", "build_data_directory"]

_GOES_ON = "the same command goes on from here"


def build_data_directory(
    out: str | Path,
    sources: Sequence[TaskSource],
    options: BuildOptions,
    *,
    report: Report | None = None,
) -> Manifest:
    """Build everything in ``.<name>.building`` and give it its name when it is complete.

    Equal sources and options give equal bytes, whatever the number of workers and however often
    the build was stopped. What a stopped build had finished is used again by the next one with the
    same plan.

    Args:
        out: The data directory.
        sources: The tasks, in the order of their ids.
        options: How to build.
        report: Told about progress, line by line; None: standard error, with a bar on a terminal.

    Returns:
        The manifest that was written.

    Raises:
        FileExistsError: ``out`` exists and may not be replaced.
        BlockingIOError: Another process is building it.
        ValueError: A source is malformed, nothing is left to train on, or a stopped build had
            another plan.
        DiskFullError: There is no room; what is finished stays.
        ChildProcessError: A worker process was killed; what is finished stays.
    """
    check_output_directory(out, overwrite=options.overwrite, marker=MANIFEST_FILE)
    _check_sources(sources)
    progress = Progress(report)
    with resumable_directory(out, overwrite=options.overwrite, marker=MANIFEST_FILE) as place:
        attempt = BuildAttempt(place, sources, options, progress)
        try:
            manifest = attempt.run()
        except DamagedPieceError as error:
            shutil.rmtree(error.directory, ignore_errors=True)
            raise
        except ValueError:
            if attempt.planned:
                place.keep = False  # the same plan would fail again
            raise
        except DiskFullError as error:
            raise DiskFullError(f"{error}. Make room; {_GOES_ON}") from error
    progress.line(f"wrote {out}")
    return manifest


def _check_sources(sources: Sequence[TaskSource]) -> None:
    twice = [name for name, n in Counter(source.name for source in sources).items() if n > 1]
    if twice:
        raise ValueError(f"task {twice[0]!r} is given twice; names must be unique")
    if all(source.group == "held_out" for source in sources):
        raise ValueError("every task is held out; expected at least one to train on")
    for source in sources:
        plain = source.name.replace("_", "").replace("-", "").replace(".", "")
        if not plain.isalnum() or not plain.isascii() or not source.name[0].isalnum():
            raise ValueError(
                f"task {source.name!r}: expected a name of letters, digits, '_', '-' and '.'"
            )
        if source.name.endswith(".exemplars"):
            raise ValueError(
                f"task {source.name!r}: expected another name; in the evaluation suite the solved "
                "problems of a task are under its name and '.exemplars'"
            )
