"""One stored mixture as a stream: shards are mapped to memory, fetched and verified if remote."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streaming import Stream
from streaming.base.format.mds import MDSReader

from flan_moe.data.storage.shards import HASH, ShardError
from flan_moe.data.streaming.remote import Location, fetch

if TYPE_CHECKING:
    from streaming.base.format import Reader
    from streaming.base.world import World


class MappedReader(MDSReader):
    """A shard that is opened once, where streaming opens it for every sample."""

    _map: mmap.mmap | None = None
    _offsets: memoryview | None = None

    @classmethod
    def of(cls, reader: MDSReader) -> MappedReader:
        """The same shard, read this way."""
        mapped = cls.__new__(cls)
        mapped.__dict__.update(reader.__dict__)
        return mapped

    def __getstate__(self) -> dict[str, Any]:
        """Leave the map to the process that made it."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_map", "_offsets")}

    def close(self) -> None:
        """Give the map back; reading again makes a new one."""
        self._map = self._offsets = None

    def get_sample_data(self, idx: int) -> bytes:
        """The bytes of one sample.

        Raises:
            FileNotFoundError: The shard is not there (yet).
            IndexError: The shard has no such sample.
        """
        if self._map is None:
            with Path(self.dirname, self.split, self.raw_data.basename).open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            # The header: the number of samples, then where each begins and the last one ends.
            self._offsets = memoryview(mapped)[4 : 4 * (self.samples + 2)].cast("I")
            self._map = mapped
        begin, end = self._offsets[idx], self._offsets[idx + 1]
        data = self._map[begin:end]
        if not data:
            raise IndexError(f"{self.raw_data.basename}: no sample {idx}")
        return data


class MixtureStream(Stream):
    """The shards of one stored mixture.

    Args:
        local: Folder with its index, and with the shards that are there.
        choose: Samples in an epoch, for streaming's books.
        source: Where missing shards are fetched from; None where all are local.
    """

    def __init__(self, *, local: Path, choose: int, source: Location | None) -> None:
        # Streaming is not told of the source: its own download neither verifies nor cleans up.
        super().__init__(local=str(local), choose=choose)
        self.source = source

    def get_shards(self, world: World, allow_unsafe_types: bool) -> list[Reader]:
        """The readers of the shards; called by streaming."""
        return [MappedReader.of(shard) for shard in super().get_shards(world, allow_unsafe_types)]

    def prepare_shard(self, shard: Reader) -> int:
        """Bring a shard if it is missing; called by streaming.

        Returns:
            The bytes that it takes.

        Raises:
            DownloadError: It cannot be fetched, or is not the one that the index lists.
            ShardError: It is missing where all shards should be local.
        """
        info = shard.raw_data
        file = Path(self.local, info.basename)
        if file.is_file():
            return 0
        if self.source is None:
            raise ShardError(f"{file}: missing shard; index.json lists it")
        fetch(self.source / info.basename, file, size=info.bytes, sha256=_digest(file, info.hashes))
        return info.bytes


def _digest(file: Path, hashes: Mapping[str, str]) -> str:
    if HASH not in hashes:
        raise ShardError(f"{file.parent}: no {HASH} for {file.name} in its index")
    return hashes[HASH]
