"""Decoded examples and packed rows, for people."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from flan_moe.data.segment_print import RULE, ShownSegment, row_lines
from flan_moe.data.storage.manifest import open_data_directory
from flan_moe.data.storage.shards import read_mds
from flan_moe.data.storage.task_table import TaskEntry, read_task_table
from flan_moe.data.tokenization.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


def show_task(
    directory: str | Path, name: str | None, *, split: str, limit: int, kind: str | None = None
) -> None:
    """Print the first examples of a task as text.

    Args:
        directory: Built by ``flan-moe-data``.
        name: Of the task; None takes the first that has the setting.
        split: ``"train"`` or ``"validation"``.
        limit: Most examples to print.
        kind: Only this setting (`flan_moe.data.template_types`).

    Raises:
        ValueError: The directory is damaged, or has no such task, setting or split.
    """
    directory = Path(directory)
    mixture, task = _find(directory, name, split, kind)
    tokenizer = load_tokenizer(directory / "tokenizer")
    start, count = task.start, task.count
    if kind is not None:  # a task's samples are stored setting by setting
        before = list(task.types).index(kind)
        start += sum(islice(task.types.values(), before))
        count = task.types[kind]
    samples = read_mds(directory / split / mixture, start=start)
    for sample in islice(samples, min(limit, count)):
        lengths = f"{len(sample['input_ids'])} -> {len(sample['labels'])} tokens"
        print(f"{RULE}\n{mixture}/{task.name} {sample['template']} ({lengths})\n{RULE}")
        for key in ("input_ids", "labels"):
            text = tokenizer.decode(sample[key].tolist(), skip_special_tokens=True)
            print(text if key == "input_ids" else f"=> {text}\n")


def show_packed_batch(
    directory: str | Path, *, split: str, limit: int, raw: int = 32, colour: bool = False
) -> None:
    """Print rows of the first batch as a model reads them, one line per segment.

    Args:
        directory: Built by ``flan-moe-data``.
        split: ``"train"`` or ``"validation"``.
        limit: Most rows to print.
        raw: Raw examples in the batch.
        colour: Whether to colour segments for a terminal.
    """
    from flan_moe.data.streaming.loader import dataloader

    tokenizer = load_tokenizer(Path(directory) / "tokenizer")
    batch = next(iter(dataloader(directory, batch_size=raw, split=split)))
    print(f"{raw} examples in {len(batch['input_ids'])} rows")
    _print_batch(batch, tokenizer, limit, colour)


def show_packed_rows(
    directory: str | Path, *, limit: int, task: str | None = None, colour: bool = False
) -> None:
    """Print the first rows of a packed directory.

    Args:
        directory: Made by ``flan-moe-data pack``.
        limit: Most rows to print.
        task: Only rows that hold an example of this task.
        colour: Whether to colour segments for a terminal.

    Raises:
        ValueError: The directory is damaged or has no such task.
    """
    import numpy as np

    from flan_moe.data.offline.manifest import open_packed_directory
    from flan_moe.data.offline.rows import ROWS_FOLDER, read_rows

    directory = Path(directory)
    manifest, _ = open_packed_directory(directory)
    names = {entry["id"]: f"{entry['mixture']}/{entry['name']}" for entry in manifest.tasks}
    wanted = {e["id"] for e in manifest.tasks if task is None or e["name"] == task}
    if not wanted:
        known = sorted(entry["name"] for entry in manifest.tasks)
        raise ValueError(f"{directory}: no task {task!r}; it has {known}")
    tokenizer = load_tokenizer(directory / "tokenizer")
    print("\n".join(manifest.lines()))
    rows = enumerate(read_rows(directory / ROWS_FOLDER))
    matching = (pair for pair in rows if wanted.intersection(pair[1]["tasks"].tolist()))
    for number, row in islice(matching, limit):
        sides = [
            np.split(row[ids], np.cumsum(row[lengths])[:-1])
            for ids, lengths in (("input_ids", "input_lengths"), ("labels", "label_lengths"))
        ]
        segments = [
            ShownSegment(
                title=names[owner],
                source=tokenizer.decode(source.tolist()),
                target=tokenizer.decode(target.tolist()),
                tokens=(len(source), len(target)),
            )
            for source, target, owner in zip(*sides, row["tasks"].tolist(), strict=True)
        ]
        budget = (manifest.max_input_tokens, manifest.max_target_tokens)
        print("\n".join(row_lines(number, segments, budget, colour=colour)))


def _print_batch(
    batch: Mapping[str, Tensor], tokenizer: PreTrainedTokenizerBase, limit: int, colour: bool
) -> None:
    for key, value in batch.items():
        print(f"  {key}: {tuple(value.shape)}")
    filled = [
        float((batch[f"{side}_segments"] > 0).float().mean()) for side in ("encoder", "decoder")
    ]
    print(f"  filled: {filled[0]:.1%} of the encoder, {filled[1]:.1%} of the decoder")
    widths = (batch["input_ids"].shape[1], batch["labels"].shape[1])
    for row in range(min(limit, len(batch["input_ids"]))):
        segments = []
        for segment in range(1, int(batch["encoder_segments"][row].max()) + 1):
            source = batch["input_ids"][row][batch["encoder_segments"][row] == segment]
            target = batch["labels"][row][batch["decoder_segments"][row] == segment]
            segments.append(
                ShownSegment(
                    title="",
                    source=tokenizer.decode(source.tolist()),
                    target=tokenizer.decode(target.tolist()),
                    tokens=(len(source), len(target)),
                )
            )
        print("\n".join(row_lines(row, segments, widths, colour=colour)))


def _find(directory: Path, name: str | None, split: str, kind: str | None) -> tuple[str, TaskEntry]:
    manifest = open_data_directory(directory)
    tasks = {
        task.name: (mixture, task)
        for mixture in manifest.splits.get(split, {})
        for task in read_task_table(directory / split / mixture).tasks
    }
    if not tasks:
        raise ValueError(f"{directory}: no split {split!r}; it has {sorted(manifest.splits)}")
    if name is not None and name not in tasks:
        raise ValueError(f"{directory}: no task {name!r} in {split}; it has {sorted(tasks)}")
    candidates = tasks.values() if name is None else [tasks[name]]
    for mixture, task in candidates:
        if kind is None or kind in task.types:
            return mixture, task
    if name is not None:
        raise ValueError(
            f"{directory}: task {name!r} has no {kind!r} samples in {split}; it has "
            f"{', '.join(tasks[name][1].types)}"
        )
    have = sorted({each for _, task in candidates for each in task.types})
    raise ValueError(
        f"{directory}: no task has {kind!r} samples in {split}; there are {', '.join(have)}"
    )
