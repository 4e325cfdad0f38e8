"""A labelled evaluation, with its samples where they were kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from flan_moe.eval.results import Results, TaskScore
from flan_moe.eval.samples import Sample, SampleLogError, log_key, log_path, read_samples
from flan_moe.eval.suite import Mode


class CellKey(NamedTuple):
    """A task with a number of shots in one mode."""

    task: str
    shots: int
    mode: Mode


def cell_key(score: TaskScore) -> CellKey:
    """The cell that a score belongs to."""
    return CellKey(score.task, score.shots, score.mode)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One evaluation under the name that tables and plots give it.

    Attributes:
        label: Name to show.
        results: The scores.
        samples: Judged samples by cell, in the order of the task; empty when none were kept.
    """

    label: str
    results: Results
    samples: Mapping[CellKey, tuple[Sample, ...]] = field(default_factory=dict)


def load_run(folder: str | Path, *, label: str | None = None) -> Run:
    """Read what :func:`flan_moe.eval.evaluate` left in its ``out_dir``.

    Args:
        folder: The ``out_dir``.
        label: Name to show; None for the folder's name.

    Raises:
        FileNotFoundError: The results or a log they rest on are missing.
        ResultsError: ``results.json`` cannot be read.
        SampleLogError: A log cannot be read, is of another model or setting than the results, or
            holds fewer samples than they count.
    """
    folder = Path(folder)
    results = Results.load(folder / "results.json")
    samples = {}
    for score in results.tasks:
        path = log_path(folder, task=score.task, shots=score.shots, mode=score.mode)
        # A rerun that was stopped leaves the old results beside logs that are no longer theirs.
        key = log_key(
            model=results.fingerprint,
            task=score.task,
            content=score.content_hash,
            shots=score.shots,
            mode=score.mode,
            method=score.method,
            decoding=results.decoding,
        )
        found = read_samples(path, key)
        if len(found) < score.n:
            raise SampleLogError(f"{path}: {len(found)} samples; the results count {score.n}")
        # Samples of an earlier run with a higher limit stay behind those of this one.
        samples[cell_key(score)] = tuple(found[: score.n])
    return Run(label=label or folder.resolve().name, results=results, samples=samples)
