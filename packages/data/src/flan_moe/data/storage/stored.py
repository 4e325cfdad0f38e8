"""The samples of a stored mixture by number, and their lengths without decoding any."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flan_moe.data.storage.shards import Sample, ShardError, check_mds

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SIZES = 3  # columns whose size is stored with each sample: input_ids, labels, template


class StoredSamples:
    """One MDS directory of samples, mapped to memory and without any shared state.

    Args:
        directory: One MDS directory.

    Raises:
        ShardError: A shard is missing or has not the size that the index states.
    """

    def __init__(self, directory: str | Path) -> None:
        from streaming.base.format import reader_from_json

        from flan_moe.data.streaming.mds_stream import MappedReader

        self.directory = Path(directory)
        self._entries = check_mds(directory)["shards"]
        self._readers = [
            MappedReader.of(reader_from_json(str(directory), "", entry)) for entry in self._entries
        ]
        self._ends = np.cumsum([entry["samples"] for entry in self._entries])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, number: int) -> Sample:
        """One sample.

        Raises:
            IndexError: There is none with this number.
            ShardError: It cannot be decoded.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"{self.directory}: sample {number} of {len(self)}")
        shard = int(np.searchsorted(self._ends, number, side="right"))
        inside = number - (int(self._ends[shard - 1]) if shard else 0)
        try:
            return self._readers[shard][inside]
        except (IndexError, ValueError, KeyError, TypeError) as error:
            raise ShardError(
                f"{self._file(shard)}: sample {inside} cannot be decoded: {error}"
            ) from error

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of every input and target, (N, 2).

        Raises:
            ShardError: A shard is damaged.
        """
        parts = []
        for number, entry in enumerate(self._entries):
            try:
                parts.append(_shard_lengths(self._file(number), entry))
            except (IndexError, ValueError) as error:
                raise ShardError(f"{self._file(number)}: damaged shard: {error}") from error
        return np.concatenate(parts)

    def _file(self, shard: int) -> Path:
        return self.directory / self._entries[shard]["raw_data"]["basename"]


def _shard_lengths(file: Path, entry: dict[str, Any]) -> NDArray[np.int64]:
    """Of one shard: from the sizes that stand in front of each sample.

    An array column is a byte with the number of dimensions (above two bits) and the width of their
    sizes, then these, then the values.
    """
    token_bytes = np.dtype(entry["column_encodings"][0].partition(":")[2]).itemsize
    data = np.memmap(file, np.uint8, mode="r")
    header = data[: 4 * (entry["samples"] + 2)].view("<u4")
    if header[0] != entry["samples"]:
        raise ValueError(f"holds {header[0]} samples; the index says {entry['samples']}")
    begin_N = header[1:-1].astype(np.int64)
    sizes_N3 = data[begin_N[:, None] + np.arange(4 * _SIZES)].view("<u4").astype(np.int64)
    column_N = begin_N + 4 * _SIZES
    lengths = []
    for column in (0, 1):
        head_N = data[column_N].astype(np.int64)
        values_N = sizes_N3[:, column] - 1 - (1 << (head_N & 3))
        if np.any(head_N >> 2 != 1) or np.any(values_N % token_bytes) or np.any(values_N < 0):
            raise ValueError("token ids are not where they should be")
        lengths.append(values_N // token_bytes)
        column_N = column_N + sizes_N3[:, column]
    return np.stack(lengths, axis=1)
