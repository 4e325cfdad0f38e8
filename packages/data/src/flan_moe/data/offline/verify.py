"""Verifies a packed directory: every byte against its hash, every row against the tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from flan_moe.data.offline.manifest import PackedManifest, open_packed_directory
from flan_moe.data.offline.rows import ROWS_FOLDER, Row, read_rows
from flan_moe.data.storage.manifest import MANIFEST_FILE
from flan_moe.data.storage.shards import ShardError
from flan_moe.data.tokenization.tokenizer import load_tokenizer


def verify_packed_directory(directory: str | Path) -> Iterator[str]:
    """Check a packed directory, telling what was found to be right.

    Yields:
        One line per part.

    Raises:
        ValueError: The first thing that is wrong; names the file.
    """
    directory = Path(directory)
    manifest, segments_R = open_packed_directory(directory, hashes=True)
    size = len(load_tokenizer(directory / "tokenizer"))
    if size != manifest.vocab_size:
        raise ValueError(
            f"{directory / MANIFEST_FILE}: vocab_size is {manifest.vocab_size}, but its tokenizer "
            f"has {size}"
        )
    yield f"{directory}: {len(manifest.files)} files match the manifest"
    found: Counter[tuple[int, str]] = Counter()
    cut = 0
    known = {task["id"] for task in manifest.tasks}
    rows = read_rows(directory / ROWS_FOLDER)
    for number, (row, segments) in enumerate(zip(rows, segments_R.tolist(), strict=True)):
        try:
            cut += _check_row(row, segments, known, manifest)
        except ValueError as error:
            raise ShardError(f"{directory / ROWS_FOLDER}: row {number}: {error}") from None
        _count(row, found)
    for task in manifest.tasks:
        for key in ("packed", "input_tokens", "target_tokens"):
            if task[key] != found[task["id"], key]:
                raise ValueError(
                    f"{directory / MANIFEST_FILE}: task {task['name']!r}: {key} is {task[key]}, "
                    f"but the rows have {found[task['id'], key]}"
                )
    if cut != manifest.total("truncated_targets"):
        raise ValueError(
            f"{directory / MANIFEST_FILE}: truncated_targets sum to "
            f"{manifest.total('truncated_targets')}, but the rows have {cut}"
        )
    yield (
        f"{ROWS_FOLDER}: {manifest.rows} rows with {manifest.total('packed')} examples match their "
        "index, tables, budgets and vocabulary"
    )


def _check_row(row: Row, segments: int, known: set[int], manifest: PackedManifest) -> int:
    """Check one row; returns how many of its targets were truncated."""
    tasks = row["tasks"].tolist()
    if len(tasks) != segments:
        raise ValueError(f"has {len(tasks)} examples; the table of rows says {segments}")
    if not known.issuperset(tasks):
        raise ValueError(f"has an example of task {set(tasks) - known}, which is not listed")
    cut = 0
    for ids_key, lengths_key, budget in (
        ("input_ids", "input_lengths", manifest.max_input_tokens),
        ("labels", "label_lengths", manifest.max_target_tokens),
    ):
        ids, lengths = row[ids_key], row[lengths_key].astype(np.int64)
        if len(lengths) != segments or not lengths.all() or lengths.sum() != len(ids):
            raise ValueError(f"{lengths_key} do not divide its {len(ids)} {ids_key}")
        if len(ids) > budget:
            raise ValueError(f"has {len(ids)} {ids_key}; expected at most {budget}")
        if ids.max() >= manifest.vocab_size:
            raise ValueError(f"{ids_key} exceed vocab_size {manifest.vocab_size}")
        open_ends = int((ids[np.cumsum(lengths) - 1] != manifest.eos_token_id).sum())
        if ids_key == "labels":
            cut = open_ends
        elif open_ends:
            raise ValueError("has an input that does not end in eos")
    return cut


def _count(row: Row, found: Counter[tuple[int, str]]) -> None:
    columns = (row["tasks"], row["input_lengths"], row["label_lengths"])
    for task, source, target in zip(*(column.tolist() for column in columns), strict=True):
        found[task, "packed"] += 1
        found[task, "input_tokens"] += source
        found[task, "target_tokens"] += target
