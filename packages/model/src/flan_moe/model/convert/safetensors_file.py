"""Safetensors files by byte range: a tensor, or some rows of it, without mapping the file.

A mapped file counts as memory of the process page by page, up to its whole size. Here nothing is
held but the bytes of one region.

The format: eight bytes with the length of the header (little-endian), the header (JSON: name ->
dtype, shape, begin and end of its bytes), then the bytes of all tensors without gaps.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from flan_moe.model.convert.region import Index, split_rows

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
)
"""torch's dtype by the name in a header."""

_LARGEST_HEADER = 100_000_000  # what the safetensors library accepts


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies.

    Attributes:
        path: its file.
        shape: of the tensor.
        dtype: of the tensor.
        start: offset of its first byte in the file.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int

    def read(self, index: Index = ()) -> Tensor:
        """The region ``tensor[index]``, a new tensor; only the bytes of its rows are read.

        Raises:
            ValueError: if the file has become shorter.
        """
        rows, rest = split_rows(index, self.shape)
        row_size = math.prod(self.shape[1:]) * self.dtype.itemsize
        shape = (rows.stop - rows.start, *self.shape[1:]) if self.shape else ()
        buffer = bytearray((rows.stop - rows.start) * row_size)
        with self.path.open("rb") as file:
            file.seek(self.start + rows.start * row_size)
            if file.readinto(buffer) != len(buffer):
                raise ValueError(f"{self.path}: the file ends inside a tensor")
        if not buffer:
            return torch.empty(shape, dtype=self.dtype)[rest]
        return torch.frombuffer(buffer, dtype=self.dtype).view(shape)[rest]


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file, by name.

    Raises:
        ValueError: if it is no safetensors file, is truncated, or its header contradicts itself.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(_LARGEST_HEADER, size - 8):
            raise ValueError(
                f"{path}: expected a safetensors file, but its {size} bytes hold no header"
            )
        try:
            header = json.loads(file.read(length))
            entries = {name: e for name, e in header.items() if name != "__metadata__"}
            stored = {name: _stored(path, e, 8 + length) for name, e in entries.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}: expected a safetensors header: {error!r}") from error
    end = 8 + length
    for name, tensor in sorted(stored.items(), key=lambda item: item[1].start):
        if tensor.start != end and math.prod(tensor.shape):
            raise ValueError(f"{path}: the bytes of {name} do not follow those before them")
        end = max(end, tensor.start + math.prod(tensor.shape) * tensor.dtype.itemsize)
    if end != size:
        raise ValueError(
            f"{path}: has {size} bytes; expected {end} for the tensors of its header "
            f"({'truncated' if size < end else 'something follows them'})"
        )
    return stored


def write_file(
    path: Path,
    tensors: Iterable[tuple[str, tuple[int, ...], torch.dtype, Iterator[Tensor]]],
) -> None:
    """Write a file, tensor after tensor.

    Args:
        path: a new file.
        tensors: name, shape, dtype, and the tensor in parts along its first axis. Each part is
            made when the one before it has been written.

    Raises:
        ValueError: if the parts are not of the dtype, or not the whole tensor.
    """
    tensors = list(tensors)
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape, dtype, _ in tensors:
        size = math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": names[dtype],
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for name, shape, dtype, parts in tensors:
            written = 0
            for part in parts:
                if part.dtype != dtype:
                    raise ValueError(f"{name}: a part is {part.dtype}; expected {dtype}")
                if part.numel():
                    file.write(part.contiguous().reshape(-1).view(torch.uint8).numpy())
                written += part.numel()
            if written != math.prod(shape):
                raise ValueError(f"{name}: got {written} elements; expected {math.prod(shape)}")


def _stored(path: Path, entry: Mapping[str, object], data: int) -> StoredTensor:
    shape = tuple(entry["shape"])
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"shape {shape}")
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"dtype {entry['dtype']!r}: expected one of {', '.join(DTYPES)}")
    dtype = DTYPES[entry["dtype"]]
    begin, end = entry["data_offsets"]
    if type(begin) is not int or begin < 0 or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"bytes {begin} to {end} for shape {shape} of {entry['dtype']}")
    return StoredTensor(path, shape, dtype, data + begin)
