"""The manifest of a built data directory, and the checks made when one is opened."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, get_type_hints

from flan_moe.data.json_types import check_rows, check_types
from flan_moe.data.storage.shards import check_mds
from flan_moe.data.storage.task_table import TABLE_FILE, TaskTable, read_task_table
from flan_moe.data.tokenization.tokenizer import tokenizer_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DATA_FORMAT = "flan-moe-data"
DATA_VERSION = 1
PACKED_FORMAT = "flan-moe-packed"
MANIFEST_FILE = "manifest.json"
AUTO_HASH_BYTES = 1 << 28

_TASK_KEYS = {"id": int, "name": str, "mixture": str, "group": str} | dict.fromkeys(
    ("train", "validation", "eval"), int
)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a data directory holds.

    Attributes:
        name: For people.
        vocab_size: Number of token ids; every stored id is below it.
        tokenizer_sha256: Fingerprint of ``tokenizer/tokenizer.json``.
        pad_token_id: Used by packing.
        eos_token_id: Ends every input and target.
        max_input_tokens: Sequence budget that the prompts were made for.
        max_target_tokens: Sequence budget of the targets.
        seed: Of everything random in the build.
        splits: Split, then mixture, then ``{"examples", "input_tokens", "target_tokens"}``.
        tasks: In order of id: ``{"id", "name", "mixture", "group"}`` and the counts ``{"train",
            "validation", "eval", "eval_removed"}``, the last of questions that training shows.
        dropped: Reason, then the number of raw records left out.
        files: Relative path of every index, table, suite and tokenizer file, and its sha256.
    """

    name: str
    vocab_size: int
    tokenizer_sha256: str
    pad_token_id: int
    eos_token_id: int
    max_input_tokens: int
    max_target_tokens: int
    seed: int
    splits: Mapping[str, Mapping[str, Mapping[str, int]]]
    tasks: tuple[Mapping[str, Any], ...]
    dropped: Mapping[str, int]
    files: Mapping[str, str]

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
        """Check that the numbers of this manifest, read from ``file``, are the tokenizer's.

        Raises:
            ValueError: Names file and key.
        """
        for key, found in (
            ("vocab_size", len(tokenizer)),
            ("pad_token_id", tokenizer.pad_token_id),
            ("eos_token_id", tokenizer.eos_token_id),
        ):
            if getattr(self, key) != found:
                raise ValueError(
                    f"{file}: {key} is {getattr(self, key)}, but its tokenizer has {found}"
                )

    def write(self, directory: Path) -> None:
        """Write ``manifest.json``, whole or not at all."""
        record = {"format": DATA_FORMAT, "version": DATA_VERSION, **asdict(self)}
        text = json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        partial = directory / f".{MANIFEST_FILE}.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(directory / MANIFEST_FILE)


def read_manifest(directory: str | Path) -> Manifest:
    """Read ``manifest.json``.

    Raises:
        ValueError: There is none, or it is damaged or of another version; names file and key.
    """
    file = Path(directory) / MANIFEST_FILE
    record = read_manifest_record(file, "a directory built by flan-moe-data")
    for key, expected in (("format", DATA_FORMAT), ("version", DATA_VERSION)):
        found = record.pop(key, None)
        if found == PACKED_FORMAT:
            raise ValueError(f"{file}: holds packed rows; packed_dataloader reads them")
        if found != expected:
            raise ValueError(f"{file}: {key} is not {expected!r}; build the data with this version")
    try:
        _check_record(record)
        return Manifest(tasks=tuple(record.pop("tasks")), **record)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: damaged manifest: {error}") from error


def read_manifest_record(file: Path, expected: str) -> dict[str, Any]:
    """The JSON object in a manifest's file, whatever it says.

    Args:
        file: To read.
        expected: What should be there, for errors.

    Raises:
        ValueError: There is no such file, or it is damaged; names it.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{file}: no such file; expected {expected}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: damaged manifest: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{file}: damaged manifest: not a JSON object")
    return record


def open_data_directory(
    directory: str | Path,
    *,
    vocab_size: int | None = None,
    tokenizer_sha256: str | None = None,
    hashes: bool | None = None,
    complete: bool = True,
) -> Manifest:
    """Check a data directory before long work starts with it.

    Args:
        directory: Built by ``flan-moe-data``.
        vocab_size: Of the model that is to read it; must hold every id.
        tokenizer_sha256: Fingerprint of the tokenizer that the model goes with.
        hashes: Read and verify every byte; False for existence and sizes of shards only. None
            verifies the bytes of directories up to `AUTO_HASH_BYTES`,
            which is quick.
        complete: Whether every file must be there; False for the cache of a remote directory
            (`flan_moe.data.streaming.remote`), where only what is there is checked.

    Returns:
        Its manifest.

    Raises:
        ValueError: Something is missing, damaged or does not fit; the message names file and key.
    """
    return open_with_tables(
        directory,
        vocab_size=vocab_size,
        tokenizer_sha256=tokenizer_sha256,
        hashes=hashes,
        complete=complete,
    )[0]


def open_with_tables(
    directory: str | Path,
    *,
    vocab_size: int | None = None,
    tokenizer_sha256: str | None = None,
    hashes: bool | None = None,
    complete: bool = True,
) -> tuple[Manifest, dict[str, dict[str, TaskTable]]]:
    """`open_data_directory`, with what it has read: split, then mixture, then its task table."""
    directory = Path(directory)
    manifest = read_manifest(directory)
    file = directory / MANIFEST_FILE
    found = tokenizer_fingerprint(directory / "tokenizer")
    if found != manifest.tokenizer_sha256:
        raise ValueError(
            f"{file}: tokenizer_sha256 is {manifest.tokenizer_sha256}, but "
            f"{directory / 'tokenizer' / 'tokenizer.json'} has {found}; the shards were written "
            "with another tokenizer"
        )
    if tokenizer_sha256 is not None and tokenizer_sha256 != manifest.tokenizer_sha256:
        raise ValueError(
            f"{file}: tokenizer_sha256 is {manifest.tokenizer_sha256}; expected "
            f"{tokenizer_sha256}, the tokenizer of the model"
        )
    if vocab_size is not None and vocab_size < manifest.vocab_size:
        raise ValueError(
            f"{file}: vocab_size is {manifest.vocab_size}; the model has {vocab_size} and cannot "
            "embed every id"
        )
    if hashes is None:
        parts = [
            directory / split / name for split, names in manifest.splits.items() for name in names
        ]
        size = sum(file.stat().st_size for part in parts for file in part.glob("*.mds"))
        hashes = size <= AUTO_HASH_BYTES
    tables = {
        split: {
            name: _checked_mixture(directory / split / name, counts["examples"], hashes, complete)
            for name, counts in mixtures.items()
        }
        for split, mixtures in manifest.splits.items()
    }
    for split, by_mixture in tables.items():
        for name, table in by_mixture.items():
            _check_tasks(manifest, directory / split / name, table)
    if hashes:
        for name, digest in manifest.files.items():
            if complete or (directory / name).exists():
                _check_hash(directory / name, digest)
    return manifest, tables


def _check_record(record: Mapping[str, Any]) -> None:
    """Check a manifest's values, and that no path in it leads out of the data directory."""
    check_types(record, get_type_hints(Manifest))
    check_rows(record["tasks"], _TASK_KEYS, "tasks")
    for number, task in enumerate(record["tasks"]):
        if task["id"] != number:
            raise ValueError(f"tasks[{number}].id is {task['id']}; expected {number}, its place")
    for key in ("vocab_size", "max_input_tokens", "max_target_tokens"):
        if record[key] < 1:
            raise ValueError(f"{key} is {record[key]}; expected a positive whole number")
    for key in ("pad_token_id", "eos_token_id"):
        if record[key] >= record["vocab_size"]:
            raise ValueError(
                f"{key} is {record[key]}; expected it below vocab_size, {record['vocab_size']}"
            )
    paths = [(name, "files") for name in record["files"]]
    for split, mixtures in record["splits"].items():
        if not mixtures:
            raise ValueError(f"splits.{split} is empty; expected at least one mixture")
        for mixture, counts in mixtures.items():
            check_types(counts, {"examples": int}, f"splits.{split}.{mixture}.")
            paths.append((f"{split}/{mixture}", "splits"))
            # Joined to a directory, a part that is absolute replaces it.
            paths += [(split, "splits"), (mixture, "splits")]
    for path, key in paths:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ValueError(f"{key}: {path!r} leaves the directory")


def file_sha256(file: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _checked_mixture(directory: Path, examples: int, hashes: bool, complete: bool) -> TaskTable:
    index = check_mds(directory, hashes=hashes, complete=complete)
    table = read_task_table(directory)
    stored = sum(shard["samples"] for shard in index["shards"])
    if not stored == table.num_samples == examples:
        raise ValueError(
            f"{directory}: the index lists {stored} samples, tasks.json {table.num_samples}, "
            f"{MANIFEST_FILE} {examples}; expected the same number"
        )
    return table


def _check_tasks(manifest: Manifest, directory: Path, table: TaskTable) -> None:
    """Compare a task table with the list of all tasks, by which samples are counted and named."""
    for task in table.tasks:
        listed = manifest.tasks[task.id]["name"] if task.id < len(manifest.tasks) else None
        if listed != task.name:
            raise ValueError(
                f"{directory / TABLE_FILE}: task {task.id} is {task.name!r}, but {MANIFEST_FILE} "
                f"has {'no such task' if listed is None else repr(listed)}"
            )


def _check_hash(file: Path, digest: str) -> None:
    if not file.is_file():
        raise ValueError(f"{file}: missing; {MANIFEST_FILE} lists it")
    if file_sha256(file) != digest:
        raise ValueError(f"{file}: damaged; its sha256 is not the one in {MANIFEST_FILE}")
