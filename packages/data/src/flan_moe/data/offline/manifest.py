"""The manifest of a packed directory, and the checks made when one is opened."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, get_type_hints

from flan_moe.data.json_types import check_types
from flan_moe.data.offline.rows import ROWS_FOLDER, check_rows, read_segments
from flan_moe.data.storage.manifest import (
    AUTO_HASH_BYTES,
    MANIFEST_FILE,
    PACKED_FORMAT,
    file_sha256,
    read_manifest_record,
)
from flan_moe.data.tokenization.tokenizer import tokenizer_fingerprint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PACKED_VERSION = 1

_COUNTS = (
    "drawn",
    "packed",
    "dropped",
    "truncated_inputs",
    "truncated_targets",
    "input_tokens",
    "target_tokens",
    "lost_input_tokens",
    "lost_target_tokens",
)


@dataclass(frozen=True, kw_only=True)
class PackedManifest:
    """What a packed directory holds.

    Attributes:
        name: For people.
        source_sha256: Of the manifest of the data directory that it was packed from.
        split: Of that directory.
        mixture: What was drawn, as `flan_moe.data.streaming.epoch_plan.EpochPlan` describes it.
        seed: Of the draw.
        epochs: How many were drawn, one after the other.
        window: Examples that were packed at once.
        overlong: What became of examples longer than a row.
        vocab_size: Number of token ids.
        tokenizer_sha256: Fingerprint of ``tokenizer/tokenizer.json``.
        pad_token_id: Fills the encoder.
        eos_token_id: Ends every input, and every target that was not truncated.
        max_input_tokens: Encoder tokens of a row.
        max_target_tokens: Decoder tokens of a row.
        rows: Number of rows.
        tasks: ``{"id", "name", "mixture"}`` and the counts ``drawn``, ``packed``, ``dropped``,
            ``truncated_inputs`` and ``truncated_targets`` of examples, ``input_tokens``,
            ``target_tokens`` in the rows, and those that truncating and dropping lost.
        files: Relative path of every index, table and tokenizer file, and its sha256.
    """

    name: str
    source_sha256: str
    split: str
    mixture: str
    seed: int
    epochs: int
    window: int
    overlong: str
    vocab_size: int
    tokenizer_sha256: str
    pad_token_id: int
    eos_token_id: int
    max_input_tokens: int
    max_target_tokens: int
    rows: int
    tasks: tuple[Mapping[str, Any], ...]
    files: Mapping[str, str]

    def total(self, count: str) -> int:
        """One of the counts, summed over all tasks."""
        return sum(task[count] for task in self.tasks)

    @property
    def fill(self) -> tuple[float, float]:
        """Share of the encoder rows, and of the decoder rows, that holds tokens."""
        encoder = self.total("input_tokens") / (self.rows * self.max_input_tokens)
        return encoder, self.total("target_tokens") / (self.rows * self.max_target_tokens)

    def lines(self) -> list[str]:
        """What there is, for people."""
        drawn, rows = self.total("drawn"), self.rows
        lines = [
            f"{self.name}: {self.total('packed'):,} examples of {len(self.tasks):,} tasks in "
            f"{rows:,} rows of {self.max_input_tokens:,} input and {self.max_target_tokens:,} "
            f"target tokens",
            "filled: {:.2%} of the encoder, {:.2%} of the decoder; {:.2f} examples a row".format(
                *self.fill, self.total("packed") / rows
            ),
        ]
        for count, what in (
            ("dropped", "examples dropped"),
            ("truncated_inputs", "inputs truncated"),
            ("truncated_targets", "targets truncated"),
        ):
            lines.append(f"{what}: {self.total(count):,} of {drawn:,} drawn")
        lost, kept = self.total("lost_target_tokens"), self.total("target_tokens")
        lines.append(f"target tokens lost: {lost:,} of {lost + kept:,}")
        return lines

    def write(self, directory: Path) -> None:
        """Write ``manifest.json``."""
        record = {"format": PACKED_FORMAT, "version": PACKED_VERSION, **asdict(self)}
        text = json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        (directory / MANIFEST_FILE).write_text(text, encoding="utf-8")


def is_packed(directory: str | Path) -> bool:
    """Whether a directory says that it holds packed rows."""
    try:
        record = json.loads((Path(directory) / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and record.get("format") == PACKED_FORMAT


def read_packed_manifest(directory: str | Path) -> PackedManifest:
    """Read ``manifest.json``.

    Raises:
        ValueError: There is none, or it is damaged or of another format; names file and key.
    """
    file = Path(directory) / MANIFEST_FILE
    record = read_manifest_record(file, "a directory made by flan-moe-data pack")
    for key, expected in (("format", PACKED_FORMAT), ("version", PACKED_VERSION)):
        found = record.pop(key, None)
        if found != expected:
            raise ValueError(
                f"{file}: {key} is {found!r}; expected {expected!r}, a directory made by "
                "flan-moe-data pack"
            )
    try:
        hints = get_type_hints(PackedManifest)
        check_types(record, hints)
        for key in record:
            if key not in hints:
                raise ValueError(f"{key}: unknown key")
        task_hints = {"id": int, "name": str, "mixture": str} | dict.fromkeys(_COUNTS, int)
        for number, task in enumerate(record["tasks"]):
            check_types(task, task_hints, f"tasks[{number}].")
        for key in ("vocab_size", "max_input_tokens", "max_target_tokens", "rows"):
            if record[key] < 1:
                raise ValueError(f"{key} is {record[key]}; expected a positive whole number")
        for name in record["files"]:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ValueError(f"files: {name!r} leaves the directory")
        return PackedManifest(tasks=tuple(record.pop("tasks")), **record)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: damaged manifest: {error}") from error


def open_packed_directory(
    directory: str | Path,
    *,
    vocab_size: int | None = None,
    tokenizer_sha256: str | None = None,
    hashes: bool | None = None,
) -> tuple[PackedManifest, NDArray[np.int64]]:
    """Check a packed directory before long work starts with it.

    Args:
        directory: Made by ``flan-moe-data pack``.
        vocab_size: As of `flan_moe.data.storage.manifest.open_data_directory`.
        tokenizer_sha256: As there.
        hashes: As there.

    Returns:
        Its manifest, and the number of examples in each row, (R,).

    Raises:
        ValueError: Something is missing, damaged or does not fit; names file and key.
    """
    directory = Path(directory)
    manifest = read_packed_manifest(directory)
    file = directory / MANIFEST_FILE
    found = tokenizer_fingerprint(directory / "tokenizer")
    for expected, whose in (
        (manifest.tokenizer_sha256, "the manifest"),
        (tokenizer_sha256, "the model"),
    ):
        if expected is not None and found != expected:
            raise ValueError(
                f"{directory / 'tokenizer'}: tokenizer_sha256 is {found}; {whose} has {expected}"
            )
    if vocab_size is not None and vocab_size < manifest.vocab_size:
        raise ValueError(
            f"{file}: vocab_size is {manifest.vocab_size}; the model has {vocab_size} and cannot "
            "embed every id"
        )
    rows = directory / ROWS_FOLDER
    if hashes is None:
        hashes = sum(part.stat().st_size for part in rows.glob("*.mds")) <= AUTO_HASH_BYTES
    for name, digest in manifest.files.items():
        part = directory / name
        if not part.is_file():
            raise ValueError(f"{part}: missing; {MANIFEST_FILE} lists it")
        # Tables are small; only shards are worth the choice.
        if file_sha256(part) != digest:
            raise ValueError(f"{part}: damaged; its sha256 is not the one in {MANIFEST_FILE}")
    stored = check_rows(rows, hashes=hashes)
    segments_R = read_segments(rows)
    if not stored == len(segments_R) == manifest.rows:
        raise ValueError(
            f"{rows}: the index lists {stored} rows, the table of rows {len(segments_R)}, "
            f"{MANIFEST_FILE} {manifest.rows}; expected the same number"
        )
    if segments_R.sum() != manifest.total("packed"):
        raise ValueError(
            f"{rows}: the table of rows has {segments_R.sum()} examples, {MANIFEST_FILE} "
            f"{manifest.total('packed')}; expected the same number"
        )
    return manifest, segments_R
