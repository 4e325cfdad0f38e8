"""Stored rows: MDS shards with the tokens of several examples, and the table of rows.

A row has the tokens of its examples one after the other, their lengths and their tasks:
``input_ids``, ``labels`` (token ids), ``input_lengths``, ``label_lengths``, ``tasks`` (n,). The
table of rows, ``segments.npy``, has the number n of each, by which a resumed run finds its row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flan_moe.data.storage.shards import (
    DEFAULT_SHARD_BYTES,
    HASH,
    TOKEN_TYPES,
    ShardError,
    check_mds,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from streaming import MDSWriter

ROWS_FOLDER = "rows"
SEGMENTS_FILE = "segments.npy"
_NUMBERS = "ndarray:uint32"

Row = Mapping[str, Any]


def row_columns(dtype: str) -> dict[str, str]:
    """Column, then its MDS encoding, of rows with token ids of a type."""
    ids = f"ndarray:{dtype}"
    # In order of the alphabet, as streaming stores them.
    return {
        "input_ids": ids,
        "input_lengths": _NUMBERS,
        "label_lengths": _NUMBERS,
        "labels": ids,
        "tasks": _NUMBERS,
    }


def make_row(examples: Sequence[tuple[np.ndarray, np.ndarray, int]]) -> Row:
    """A row of examples: input, target, id of the task."""
    inputs, labels, tasks = zip(*examples, strict=True)
    return {
        "input_ids": np.concatenate(inputs),
        "labels": np.concatenate(labels),
        "input_lengths": np.array([len(ids) for ids in inputs], np.uint32),
        "label_lengths": np.array([len(ids) for ids in labels], np.uint32),
        "tasks": np.array(tasks, np.uint32),
    }


def row_writer(
    directory: Path, *, dtype: np.dtype, shard_bytes: int = DEFAULT_SHARD_BYTES
) -> MDSWriter:
    """A writer of rows; ``directory`` must not exist."""
    from streaming import MDSWriter

    columns = row_columns(np.dtype(dtype).name)
    return MDSWriter(out=str(directory), columns=columns, hashes=[HASH], size_limit=shard_bytes)


def check_rows(directory: Path, *, hashes: bool) -> int:
    """Compare the shards with their index; returns the number of rows.

    Raises:
        ShardError: The index or a shard is missing, truncated or damaged.
    """
    layouts = [row_columns(name) for name in TOKEN_TYPES]
    index = check_mds(directory, hashes=hashes, layouts=layouts)
    return sum(entry["samples"] for entry in index["shards"])


def read_rows(directory: str | Path) -> Iterator[Row]:
    """All rows in stored order.

    Raises:
        ShardError: A shard is missing, truncated or damaged.
    """
    from streaming.base.format import reader_from_json

    directory = Path(directory)
    layouts = [row_columns(name) for name in TOKEN_TYPES]
    for entry in check_mds(directory, layouts=layouts)["shards"]:
        shard = reader_from_json(str(directory), "", entry)
        for number in range(len(shard)):
            try:
                yield shard[number]
            except (IndexError, ValueError, KeyError, TypeError) as error:
                file = directory / entry["raw_data"]["basename"]
                raise ShardError(f"{file}: row {number} cannot be decoded: {error}") from error


def write_segments(directory: Path, segments: Sequence[int]) -> None:
    """Write the table of rows."""
    np.save(directory / SEGMENTS_FILE, np.array(segments, "<u4"), allow_pickle=False)


def read_segments(directory: Path) -> NDArray[np.int64]:
    """Examples of each row, (R,).

    Raises:
        ShardError: The table of rows is missing or damaged.
    """
    file = directory / SEGMENTS_FILE
    try:
        with file.open("rb") as stream:  # np.load would take an archive or a pickle as well
            segments_R = np.lib.format.read_array(stream, allow_pickle=False)
        if segments_R.dtype != np.dtype("<u4") or segments_R.ndim != 1 or not segments_R.all():
            raise ValueError("expected positive uint32 numbers")
        return segments_R.astype(np.int64)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise ShardError(f"{file}: missing or damaged table of rows: {error}") from error
