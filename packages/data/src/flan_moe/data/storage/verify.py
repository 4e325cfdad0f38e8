"""Verifies a data directory: every byte against its hash, every sample against its index."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from flan_moe.data.offline.manifest import is_packed
from flan_moe.data.offline.verify import verify_packed_directory
from flan_moe.data.storage.manifest import MANIFEST_FILE, Manifest, open_data_directory
from flan_moe.data.storage.shards import ShardError, check_webdataset, read_mds, read_webdataset
from flan_moe.data.storage.task_table import read_task_table
from flan_moe.data.tokenization.tokenizer import load_tokenizer


def verify_data_directory(directory: str | Path) -> Iterator[str]:
    """Check a data directory, or a packed one, telling what was found to be right.

    Yields:
        One line per part.

    Raises:
        ValueError: The first thing that is wrong; names the file.
    """
    directory = Path(directory)
    if is_packed(directory):
        yield from verify_packed_directory(directory)
        return
    manifest = open_data_directory(directory, hashes=True)
    manifest.check_tokenizer(load_tokenizer(directory / "tokenizer"), directory / MANIFEST_FILE)
    yield f"{directory}: {len(manifest.files)} files match the manifest"
    for split, mixtures in manifest.splits.items():
        for mixture in mixtures:
            count = _verify_samples(directory / split / mixture, manifest)
            yield f"{split}/{mixture}: {count} samples match their index, table and vocabulary"
            tars = directory / "webdataset" / split / mixture
            if tars.is_dir():
                check_webdataset(tars, hashes=True)
                stored = sum(1 for _ in read_webdataset(tars))
                if stored != count:
                    raise ShardError(f"{tars}: {stored} samples; the MDS shards hold {count}")
                yield f"webdataset/{split}/{mixture}: {stored} samples match their index"


def _verify_samples(directory: Path, manifest: Manifest) -> int:
    tasks = read_task_table(directory).tasks
    samples = read_mds(directory)
    count = 0
    for task in tasks:
        for number in range(task.count):
            sample = next(samples, None)
            where = f"{directory}: sample {task.start + number}"
            if sample is None or sample["task"] != task.id:
                raise ShardError(f"{where}: expected task {task.name!r} ({task.id})")
            for key in ("input_ids", "labels"):
                ids = sample[key]
                if ids.max() >= manifest.vocab_size or ids[-1] != manifest.eos_token_id:
                    raise ShardError(
                        f"{where}: {key} do not end in eos or exceed vocab_size "
                        f"{manifest.vocab_size}"
                    )
            count += 1
    return count
