"""Arrays in a ``.npz`` file, read row by row."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from flan_moe.model.convert.region import Index, split_rows
from flan_moe.model.convert.source import TensorInfo

_DTYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")


# What zipfile raises for damaged bytes; RuntimeError and NotImplementedError for archives with a
# password or a compression that Python lacks.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError)


class NpzSource:
    """Arrays of one ``.npz`` file, as `numpy.savez` writes it.

    Rows are read in place where the file is not compressed, and in one pass over an array whose
    rows are asked for in order where it is.

    Args:
        path: the file.

    Raises:
        ValueError: if it is damaged, or holds an array that is pickled, in Fortran order or of a
            dtype that torch lacks (numpy has no bfloat16: save such arrays as safetensors).
    """

    def __init__(self, path: Path) -> None:
        self.origin = str(path)
        try:
            self._archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise ValueError(f"{path}: expected a .npz file: {error}") from error
        self.tensors: dict[str, TensorInfo] = {}
        self._dtype: dict[str, np.dtype] = {}
        self._data_start: dict[str, int] = {}
        self._entry: dict[str, str] = {}
        self._member: tuple[str, IO[bytes]] | None = None
        for entry in self._archive.namelist():
            name = entry.removesuffix(".npy")
            try:
                with self._archive.open(entry) as file:
                    shape, dtype = self._header(name, file)
                    self._data_start[name] = file.tell()
            except _DAMAGE as error:
                raise ValueError(f"{path}: {name}: {error}") from error
            self._entry[name] = entry
            self.tensors[name] = TensorInfo(shape, torch.from_numpy(np.empty(0, dtype)).dtype)
            self._dtype[name] = dtype

    def read(self, name: str, index: Index = ()) -> Tensor:
        """The region ``array[index]``.

        Raises:
            ValueError: if the array's bytes end early.
        """
        shape, dtype = self.tensors[name].shape, self._dtype[name]
        rows, rest = split_rows(index, shape)
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        if self._member is None or self._member[0] != name:
            if self._member is not None:
                self._member[1].close()
            self._member = (name, self._archive.open(self._entry[name]))
        file = self._member[1]
        size = len(rows) * row_bytes
        buffer = bytearray(size)
        try:
            file.seek(self._data_start[name] + rows.start * row_bytes)
            found = file.readinto(buffer)
        except _DAMAGE as error:
            raise ValueError(f"{self.origin}: {name}: {error}") from error
        if found != size:
            raise ValueError(f"{self.origin}: {name}: the file ends inside the array")
        array = np.frombuffer(buffer, dtype).reshape((len(rows), *shape[1:]) if shape else ())
        return torch.from_numpy(array)[rest]

    def _header(self, name: str, file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
        try:
            version = np.lib.format.read_magic(file)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, fortran, dtype = read(file)
        except (ValueError, KeyError, tokenize.TokenError) as error:
            raise ValueError(f"{self.origin}: {name}: expected an array: {error!r}") from error
        if dtype.name not in _DTYPES or not dtype.isnative or (fortran and len(shape) > 1):
            raise ValueError(
                f"{self.origin}: {name} is {dtype!r}{' in Fortran order' if fortran else ''}; "
                f"expected C order and one of {', '.join(_DTYPES)} (bfloat16: save as safetensors)"
            )
        return shape, dtype
