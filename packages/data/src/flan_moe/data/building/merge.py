"""Pieces to shards: one split of one mixture, task after task, in one pass."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flan_moe.data.building.disk import writing
from flan_moe.data.building.lengths import histogram, quantiles, total
from flan_moe.data.building.pieces import Piece
from flan_moe.data.sources.task_source import DEFAULT_CAP, MIXTURE_CAPS
from flan_moe.data.storage.shards import mds_writer, read_mds, write_webdataset
from flan_moe.data.storage.task_table import TaskEntry, TaskTable


def merge_pieces(
    directory: Path,
    pieces: Sequence[Piece],
    split: str,
    *,
    mixture: str,
    dtype: np.dtype,
    shard_bytes: int,
) -> None:
    """Write the shards and the table of one split of one mixture; it appears when complete.

    Args:
        directory: Where to.
        pieces: Of the mixture's tasks, in order; at least one has samples.
        split: ``"train"`` or ``"validation"``.
        mixture: Its name.
        dtype: Of the token ids.
        shard_bytes: Largest size of a shard.

    Raises:
        DamagedPieceError: A piece is not what was written.
        DiskFullError: There is no room.
    """
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with writing(directory):
        writer = mds_writer(partial, dtype=dtype, shard_bytes=shard_bytes, encoded=True)
        try:
            for piece in pieces:
                for sample in piece.samples(split):
                    writer.write(sample)
            writer.finish()
        finally:
            writer.cancel_future_jobs()
        task_table(pieces, split, mixture).write(partial)
    partial.rename(directory)


def merge_tars(directory: Path, shards: Path) -> None:
    """Write the samples of shards as tars; the directory appears when it is complete."""
    with writing(directory):
        write_webdataset(directory, read_mds(shards))


def task_table(pieces: Sequence[Piece], split: str, mixture: str) -> TaskTable:
    """The table of one split of one mixture; tasks without samples are not in it."""
    entries: list[TaskEntry] = []
    inputs: Counter[int] = Counter()
    targets: Counter[int] = Counter()
    start = 0
    for piece in pieces:
        found = piece.splits[split]
        if not found.count:
            continue
        entries.append(
            TaskEntry(
                id=piece.number,
                name=piece.suite.name,
                start=start,
                count=found.count,
                cap=MIXTURE_CAPS.get(mixture, DEFAULT_CAP),
                max_input_tokens=max(found.input_lengths),
                max_target_tokens=max(found.target_lengths),
                types=found.types,
                input_tokens=total(found.input_lengths),
                target_tokens=total(found.target_lengths),
                input_quantiles=quantiles(found.input_lengths),
                target_quantiles=quantiles(found.target_lengths),
            )
        )
        start += found.count
        inputs.update(found.input_lengths)
        targets.update(found.target_lengths)
    return TaskTable(
        mixture=mixture,
        tasks=tuple(entries),
        input_lengths=histogram(inputs),
        target_lengths=histogram(targets),
    )
