"""Decoded examples and packed batches, for people."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from flan_moe.data.manifest import open_data_directory
from flan_moe.data.shards import read_mds
from flan_moe.data.task_table import TaskEntry, read_task_table
from flan_moe.data.tokenizer import load_tokenizer

RULE = "-" * 80


def show_task(directory: str | Path, name: str | None, *, split: str, limit: int) -> None:
    """Print the first examples of a task as text.

    Raises:
        ValueError: The directory is damaged, or has no such task or split.
    """
    directory = Path(directory)
    mixture, task = _find(directory, name, split)
    tokenizer = load_tokenizer(directory / "tokenizer")
    samples = read_mds(directory / split / mixture, start=task.start)
    for sample in islice(samples, min(limit, task.count)):
        lengths = f"{len(sample['input_ids'])} -> {len(sample['labels'])} tokens"
        print(f"{RULE}\n{mixture}/{task.name} {sample['template']} ({lengths})\n{RULE}")
        for key in ("input_ids", "labels"):
            text = tokenizer.decode(sample[key].tolist(), skip_special_tokens=True)
            print(text if key == "input_ids" else f"=> {text}\n")


def show_packed_batch(directory: str | Path, *, split: str, limit: int, raw: int = 32) -> None:
    """Print rows of the first batch as a model reads them, one line per segment.

    Args:
        directory: Built by ``flan-moe-data``.
        split: ``"train"`` or ``"validation"``.
        limit: Most rows to print.
        raw: Raw examples in the batch.
    """
    from flan_moe.data.loader import dataloader

    tokenizer = load_tokenizer(Path(directory) / "tokenizer")
    batch = next(iter(dataloader(directory, batch_size=raw, split=split)))
    print(f"{raw} examples in {len(batch['input_ids'])} rows")
    for key, value in batch.items():
        print(f"  {key}: {tuple(value.shape)}")
    for row in range(min(limit, len(batch["input_ids"]))):
        print(f"{RULE}\nrow {row}\n{RULE}")
        for segment in range(1, int(batch["encoder_segments"][row].max()) + 1):
            source = batch["input_ids"][row][batch["encoder_segments"][row] == segment]
            target = batch["labels"][row][batch["decoder_segments"][row] == segment]
            texts = (tokenizer.decode(ids.tolist()) for ids in (source, target))
            print(f"[{segment}] {' => '.join(map(repr, texts))}")


def _find(directory: Path, name: str | None, split: str) -> tuple[str, TaskEntry]:
    manifest = open_data_directory(directory)
    tasks = {
        task.name: (mixture, task)
        for mixture in manifest.splits.get(split, {})
        for task in read_task_table(directory / split / mixture).tasks
    }
    if not tasks:
        raise ValueError(f"{directory}: no split {split!r}; it has {sorted(manifest.splits)}")
    if name is None:
        return next(iter(tasks.values()))
    if name not in tasks:
        raise ValueError(f"{directory}: no task {name!r} in {split}; it has {sorted(tasks)}")
    return tasks[name]
