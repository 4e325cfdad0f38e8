"""One part of a spool: the rows of one input file, sorted by task, and the record of them.

``<key>.rows`` is a row of compressed blocks, each with rows of one task. ``<key>.json`` says which
block belongs to which task and what was counted. The record is renamed into place last: a part
without a record does not exist.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any, NamedTuple

from flan_moe.data.json_types import check_types
from flan_moe.data.readers.errors import RawDataError
from flan_moe.data.readers.templated import TemplatedRow
from flan_moe.data.template_types import template_type

BUFFER_BYTES = 32 << 20  # of rows in memory; then every task's rows become a block
COMPRESSION = 3  # zlib: half the time of the default level for a tenth more bytes
MOST_REASONS = 200  # different reasons that are counted by themselves
OTHER_REASONS = "other reasons"


class Block(NamedTuple):
    """Some rows of one task in a part."""

    offset: int
    length: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class PartTask:
    """The rows of one task in a part.

    Attributes:
        mixture: The stored mixture.
        task: Name of the task.
        settings: Setting of prompts, then the number of rows.
        blocks: Where they are.
    """

    mixture: str
    task: str
    settings: Mapping[str, int]
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """What is known of a part.

    Attributes:
        source: Location of the input file.
        source_path: Its folders and its name below the location that was given.
        source_bytes: Its size, where the store tells.
        source_version: Its date or tag, where the store tells.
        source_sha256: Of a local input file.
        rows_bytes: Size of the part's rows.
        rows_sha256: Hash of them.
        read: Rows in the input file.
        dropped: Reason, then the number of rows left out.
        tasks: The rows kept, by mixture and task.
    """

    source: str
    source_path: tuple[str, ...]
    source_bytes: int | None
    source_version: str | None
    source_sha256: str | None
    rows_bytes: int
    rows_sha256: str
    read: int
    dropped: Mapping[str, int]
    tasks: tuple[PartTask, ...]

    @property
    def kept(self) -> int:
        """Number of rows in the part."""
        return sum(sum(task.settings.values()) for task in self.tasks)

    @property
    def key(self) -> str:
        """Name of the part's files, without the suffix."""
        return part_key(self.source)


def part_key(source: str) -> str:
    """The name of an input file's part: short, unique, and the same in every run."""
    return hashlib.sha256(source.encode()).hexdigest()[:20]


class PartWriter:
    """Sorts the rows of one input file by task, within bounded memory.

    Args:
        directory: Where the two files go.
        source: Location of the input file.
        path: Its folders and its name below the location that was given.
        buffer_bytes: Text held in memory.
    """

    def __init__(
        self,
        directory: Path,
        source: str,
        path: tuple[str, ...] = (),
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        self._key = part_key(source)
        self._source = source
        self._path = path
        self._directory = directory
        self._buffer_bytes = buffer_bytes
        self._held: dict[tuple[str, str], list[bytes]] = {}
        self._held_bytes = 0
        self._offset = 0
        self._hash = hashlib.sha256()
        self._blocks: dict[tuple[str, str], list[Block]] = {}
        self._settings: dict[tuple[str, str], Counter[str]] = {}
        self._read = 0
        self._dropped: Counter[str] = Counter()
        self._temporary = directory / f".{self._key}.{os.getpid()}.tmp"
        self._stream = self._temporary.open("wb")

    def add(self, row: TemplatedRow | str) -> None:
        """Take a row, or count one that was left out."""
        self._read += 1
        if isinstance(row, str):
            known = row in self._dropped or len(self._dropped) < MOST_REASONS
            self._dropped[row if known else OTHER_REASONS] += 1
            return
        key = (row.mixture, row.task)
        texts = map(encode_basestring, (row.template, row.prompt, row.target))
        line = f"[{', '.join(texts)}]".encode()  # as json.dumps would write it, in a third the time
        self._held.setdefault(key, []).append(line)
        self._settings.setdefault(key, Counter())[template_type(row.template)] += 1
        self._held_bytes += len(line)
        if self._held_bytes >= self._buffer_bytes:
            self._flush()

    def commit(self, fingerprint: Mapping[str, Any], sha256: str | None) -> PartRecord:
        """Write what is held and put the part in place.

        Args:
            fingerprint: Of the input file, as `location.fingerprint` gives it.
            sha256: Of the input file, where known.
        """
        self._flush()
        with self._writing():
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
        record = PartRecord(
            source=self._source,
            source_path=self._path,
            source_bytes=fingerprint["bytes"],
            source_version=fingerprint["version"],
            source_sha256=sha256,
            rows_bytes=self._offset,
            rows_sha256=self._hash.hexdigest(),
            read=self._read,
            dropped=dict(sorted(self._dropped.items())),
            tasks=tuple(
                PartTask(
                    mixture=mixture,
                    task=task,
                    settings=dict(sorted(self._settings[mixture, task].items())),
                    blocks=tuple(self._blocks[mixture, task]),
                )
                for mixture, task in sorted(self._blocks)
            ),
        )
        text = json.dumps(asdict(record), ensure_ascii=False) + "\n"
        with self._writing():
            os.replace(self._temporary, self._directory / f"{self._key}.rows")
            self._temporary.write_text(text, "utf-8")
            os.replace(self._temporary, self._directory / f"{self._key}.json")
        return record

    def discard(self) -> None:
        """Remove what was written; nothing of it has its final name."""
        with suppress(OSError):  # what a full disk did not take
            self._stream.close()
        self._temporary.unlink(missing_ok=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                error.errno, f"{self._directory}: cannot be written: {error.strerror}"
            ) from error

    def _flush(self) -> None:
        for key in sorted(self._held):
            lines = self._held[key]
            block = zlib.compress(b"\n".join(lines), COMPRESSION)
            with self._writing():
                self._stream.write(block)
            self._hash.update(block)
            self._blocks.setdefault(key, []).append(Block(self._offset, len(block), len(lines)))
            self._offset += len(block)
        self._held.clear()
        self._held_bytes = 0


def read_record(file: Path) -> PartRecord:
    """Read the record of a part.

    Raises:
        RawDataError: It is damaged.
    """
    try:
        record = json.loads(file.read_bytes())
        check_types(record, {"source": str, "rows_bytes": int, "rows_sha256": str, "read": int})
        check_types(record, {"dropped": Mapping[str, int], "tasks": tuple[Any, ...]})
        check_types(record, {"source_path": tuple[str, ...]})
        tasks = []
        for number, entry in enumerate(record["tasks"]):
            hints = {"mixture": str, "task": str, "settings": Mapping[str, int]}
            hints["blocks"] = tuple[tuple[int, ...], ...]
            check_types(entry, hints, f"tasks[{number}].")
            tasks.append(
                PartTask(
                    mixture=entry["mixture"],
                    task=entry["task"],
                    settings=entry["settings"],
                    blocks=tuple(Block(*block) for block in entry["blocks"]),
                )
            )
        record |= {"source_path": tuple(record["source_path"]), "tasks": tuple(tasks)}
        return PartRecord(**record)
    except (ValueError, TypeError, RecursionError) as error:
        raise RawDataError(f"{file}: not the record of a spool's part: {error}") from error


def read_blocks(file: Path, blocks: tuple[Block, ...]) -> Iterator[tuple[str, str, str]]:
    """The rows of some blocks: template, prompt and target.

    Raises:
        RawDataError: The file is missing, truncated or damaged.
    """
    try:
        stream = file.open("rb")
    except FileNotFoundError:
        raise RawDataError(f"{file}: no such file; is the spool whole?") from None
    with stream:
        for block in blocks:
            stream.seek(block.offset)
            try:
                lines = zlib.decompress(stream.read(block.length)).split(b"\n")
                rows = [json.loads(line) for line in lines]
            except (zlib.error, ValueError) as error:
                raise RawDataError(f"{file}: damaged at byte {block.offset}: {error}") from error
            if len(rows) != block.rows:
                raise RawDataError(
                    f"{file}: {len(rows)} rows at byte {block.offset}; expected {block.rows}"
                )
            yield from map(tuple, rows)
