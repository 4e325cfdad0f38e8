"""The training texts of a data directory, decoded."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

from flan_moe.data.leaks.scan import TrainingText
from flan_moe.data.storage.manifest import open_data_directory
from flan_moe.data.storage.shards import read_mds
from flan_moe.data.storage.task_table import read_task_table
from flan_moe.data.tokenization.tokenizer import load_tokenizer

BATCH = 512  # samples decoded at once


def training_samples(directory: str | Path) -> int:
    """Number of training samples of a data directory."""
    manifest = open_data_directory(directory, hashes=False)
    return sum(counts["examples"] for counts in manifest.splits["train"].values())


def training_texts(directory: str | Path) -> Iterator[TrainingText]:
    """Prompt and target of every training sample.

    Samples are numbered within their mixture, as `flan_moe.data.storage.shards.read_mds` does.

    Raises:
        ValueError: The directory is damaged; names the file.
    """
    directory = Path(directory)
    manifest = open_data_directory(directory)
    tokenizer = load_tokenizer(directory / "tokenizer")
    for mixture in manifest.splits["train"]:
        part = directory / "train" / mixture
        names = {task.id: task.name for task in read_task_table(part).tasks}
        samples, number = read_mds(part), count()
        while batch := list(islice(samples, BATCH)):
            ids = [sample[key].tolist() for sample in batch for key in ("input_ids", "labels")]
            texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
            for index, sample in enumerate(batch):
                parts = (texts[2 * index], texts[2 * index + 1])
                yield TrainingText(task=names[sample["task"]], sample=next(number), parts=parts)
