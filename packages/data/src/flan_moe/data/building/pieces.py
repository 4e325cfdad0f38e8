"""Pieces: one task opened, formed and tokenised into files of its own, with its statistics.

A piece is a folder that appears when it is complete, so a stopped build keeps every task that it
had finished, and which process made a piece, and when, leaves no trace in it. Samples are stored as
MDS encodes them, setting by setting, each after its length; merging copies them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO

import numpy as np

from flan_moe.data.building.disk import writing
from flan_moe.data.building.shown import ShownProblems
from flan_moe.data.example import Example
from flan_moe.data.sources.task_source import TaskContent, TaskSource
from flan_moe.data.storage.shards import ShardError, encode_sample
from flan_moe.data.suite import SuiteItem, SuiteTask
from flan_moe.data.template_types import TEMPLATE_TYPES, template_type
from flan_moe.data.tokenization.tokenizer import TextEncoder

SPLITS = ("train", "validation")
BATCH = 1024  # texts per tokenizer call
IN_MEMORY = 1 << 24  # bytes per setting until a task goes to disk
COPIED = 1 << 20  # bytes at a time
STATISTICS = "piece.json"
SHOWN = "shown.npy"


class DamagedPieceError(ShardError):
    """A piece is not what was written; making it again helps.

    Attributes:
        directory: Of the piece.
    """

    def __init__(self, directory: Path, message: str) -> None:
        super().__init__(message)
        self.directory = directory

    def __reduce__(self) -> tuple[Any, ...]:
        return DamagedPieceError, (self.directory, str(self)), vars(self)


class PromptBudget:
    """Tells whether a prompt fits, and keeps the ids of those that do until they are stored."""

    def __init__(self, encoder: TextEncoder, most: int) -> None:
        self._encoder = encoder
        self._most = most
        self._ids: dict[str, np.ndarray] = {}

    def __call__(self, prompt: str) -> bool:
        """Whether the prompt has at most so many tokens, eos included."""
        (ids,) = self._encoder.encode([prompt])
        if len(ids) > self._most:
            return False
        self._ids[prompt] = ids
        return True

    def encode(self, prompts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each prompt; forgets those it kept."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._ids]
        found = self._ids | dict(zip(new, self._encoder.encode(new), strict=True))
        self._ids = {}
        return [found[prompt] for prompt in prompts]


@dataclass(frozen=True, kw_only=True)
class SplitStatistics:
    """One split of a piece.

    Attributes:
        types: Setting, then number of samples; stored in this order.
        input_lengths: Length in tokens, then how many inputs have it.
        target_lengths: The same of the targets.
        bytes: Size of the file.
        sha256: Of the file.
    """

    types: Mapping[str, int]
    input_lengths: Mapping[int, int]
    target_lengths: Mapping[int, int]
    bytes: int
    sha256: str

    @property
    def count(self) -> int:
        """Number of samples."""
        return sum(self.types.values())


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A finished piece.

    Attributes:
        directory: Where its files are.
        number: The task's id.
        splits: ``"train"`` and ``"validation"``.
        dropped: Reason, then the number of raw records left out.
        suite: The task's evaluation questions, training not considered.
    """

    directory: Path
    number: int
    splits: Mapping[str, SplitStatistics]
    dropped: Mapping[str, int]
    suite: SuiteTask

    def digests_N(self) -> np.ndarray:
        """What the piece shows; see `ShownProblems`."""
        return np.load(self.directory / SHOWN, allow_pickle=False)

    def holds(self, split: str) -> bool:
        """Whether the file of a split is there with its size; its content is not read."""
        file = self.directory / split
        return file.is_file() and file.stat().st_size == self.splits[split].bytes

    def samples(self, split: str) -> Iterator[bytes]:
        """The encoded samples of a split, in order.

        Raises:
            DamagedPieceError: The file is not what was written; raised at its end.
        """
        file, expected = self.directory / split, self.splits[split]
        digest = hashlib.sha256()
        count = 0
        with file.open("rb") as stream:
            while head := stream.read(4):
                data = stream.read(int.from_bytes(head, "little"))
                digest.update(head)
                digest.update(data)
                count += 1
                yield data
        if (count, digest.hexdigest()) != (expected.count, expected.sha256):
            raise DamagedPieceError(
                self.directory,
                f"{file}: damaged after it was written; the same command makes it again",
            )


def piece_directory(pieces: Path, number: int) -> Path:
    """Where the piece of a task is."""
    return pieces / f"{number:06d}"


def write_piece(
    pieces: Path, number: int, source: TaskSource, encoder: TextEncoder, max_input_tokens: int
) -> None:
    """Make the piece of one task.

    Args:
        pieces: The folder of all pieces.
        number: The task's id.
        source: The task.
        encoder: Texts to ids.
        max_input_tokens: Few-shot prompts drop exemplars until they fit.

    Raises:
        ValueError: The source is malformed.
        DiskFullError: There is no room for it.
    """
    final = piece_directory(pieces, number)
    partial = final.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with writing(partial):
        partial.mkdir(parents=True)
    budget = PromptBudget(encoder, max_input_tokens)
    content = source.open(budget)
    shown = ShownProblems()
    splits = {}
    for split in SPLITS:
        examples = content.train if split == "train" else content.validation
        splits[split] = _write_split(partial / split, number, examples, encoder, budget, shown)
    statistics = {
        "splits": {split: asdict(found) for split, found in splits.items()},
        "dropped": dict(content.dropped),
        "suite": _suite_record(_suite_task(source, content)),
    }
    with writing(partial):
        np.save(partial / SHOWN, shown.digests_N(), allow_pickle=False)
        text = json.dumps(statistics, ensure_ascii=False) + "\n"
        (partial / STATISTICS).write_text(text, encoding="utf-8")
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)


def read_piece(pieces: Path, number: int) -> Piece | None:
    """A finished piece, its samples unread; None where there is none, or a damaged one."""
    directory = piece_directory(pieces, number)
    try:
        record = json.loads((directory / STATISTICS).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    splits = {}
    for split, found in record["splits"].items():
        for key in ("input_lengths", "target_lengths"):
            found[key] = {int(length): count for length, count in found[key].items()}
        splits[split] = SplitStatistics(**found)
    suite = record["suite"]
    for key in ("items", "exemplars"):
        suite[key] = tuple(_item(item) for item in suite[key])
    return Piece(
        directory=directory,
        number=number,
        splits=splits,
        dropped=record["dropped"],
        suite=SuiteTask(**suite),
    )


def _item(record: dict) -> SuiteItem:
    for key in ("targets", "options"):
        record[key] = None if record[key] is None else tuple(record[key])
    return SuiteItem(**record)


def _suite_record(task: SuiteTask) -> dict[str, Any]:
    items = {key: [vars(item) for item in getattr(task, key)] for key in ("items", "exemplars")}
    return vars(task) | items


def _suite_task(source: TaskSource, content: TaskContent) -> SuiteTask:
    return SuiteTask(
        name=source.name,
        mixture=source.mixture,
        group=source.group,
        kind=content.kind,
        cot=source.cot,
        chance=content.chance,
        items=content.items,
        exemplars=content.exemplars,
    )


def _write_split(
    file: Path,
    number: int,
    examples: Iterable[Example],
    encoder: TextEncoder,
    budget: PromptBudget,
    shown: ShownProblems,
) -> SplitStatistics:
    types: Counter[str] = Counter()
    lengths: dict[str, Counter[int]] = {"input_ids": Counter(), "labels": Counter()}
    digest = hashlib.sha256()
    with ExitStack() as stack, writing(file):
        spools = {
            kind: stack.enter_context(SpooledTemporaryFile(max_size=IN_MEMORY, dir=file.parent))
            for kind in TEMPLATE_TYPES
        }
        iterator = iter(examples)
        while batch := list(islice(iterator, BATCH)):
            inputs = budget.encode([example.prompt for example in batch])
            targets = encoder.encode([example.target for example in batch])
            for example, input_ids, labels in zip(batch, inputs, targets, strict=True):
                shown.add(example)
                sample = {
                    "input_ids": input_ids,
                    "labels": labels,
                    "task": number,
                    "template": example.template,
                }
                kind = template_type(example.template)
                data = encode_sample(sample)
                spools[kind].write(len(data).to_bytes(4, "little") + data)
                types[kind] += 1
                for key, counts in lengths.items():
                    counts[len(sample[key])] += 1
        with file.open("wb") as stream:
            for spool in spools.values():
                _copy(spool, stream, digest)
            size = stream.tell()
    return SplitStatistics(
        types={kind: types[kind] for kind in TEMPLATE_TYPES if types[kind]},
        input_lengths=dict(sorted(lengths["input_ids"].items())),
        target_lengths=dict(sorted(lengths["labels"].items())),
        bytes=size,
        sha256=digest.hexdigest(),
    )


def _copy(source: SpooledTemporaryFile, target: BinaryIO, digest: hashlib._Hash) -> None:
    source.seek(0)
    while data := source.read(COPIED):
        digest.update(data)
        target.write(data)
