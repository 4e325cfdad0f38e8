"""Weight files of a directory as one source, whatever their format.

Only formats that cannot run code are read: safetensors, arrays of numpy, and pickles of torch that
load with ``weights_only=True``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from flan_moe.model.convert.npz_source import NpzSource
from flan_moe.model.convert.pickled_source import PickledSource
from flan_moe.model.convert.region import Index
from flan_moe.model.convert.safetensors_file import read_header
from flan_moe.model.convert.source import TensorInfo, TensorSource, some

_SAFETENSORS = "model.safetensors"
_PICKLED = "pytorch_model.bin"


class SafetensorsSource:
    """Tensors of safetensors files.

    Args:
        paths: the files; headers are read at once, tensors when asked for.
        origin: the file or directory, for messages.

    Raises:
        ValueError: if a file is damaged, or two have a tensor of one name.
    """

    def __init__(self, paths: list[Path], origin: str) -> None:
        self.origin = origin
        self._stored = {}
        for path in paths:
            header = read_header(path)
            for name in header.keys() & self._stored.keys():
                raise ValueError(f"{path}: {name} is in {self._stored[name].path.name} too")
            self._stored.update(header)
        self.tensors = {name: TensorInfo(t.shape, t.dtype) for name, t in self._stored.items()}

    def read(self, name: str, index: Index = ()) -> Tensor:
        """The region ``tensor[index]``; reads its rows only."""
        return self._stored[name].read(index)


def open_checkpoint(path: Path) -> TensorSource:
    """The weights of a directory, or of one file.

    Of a directory, the first of these that is there, as in transformers: ``model.safetensors``,
    ``model.safetensors.index.json``, ``pytorch_model.bin``, ``pytorch_model.bin.index.json``.

    Args:
        path: directory, or a ``.safetensors``, ``.npz``, ``.bin`` or ``.pt`` file.

    Raises:
        FileNotFoundError: if there is nothing to read.
        ValueError: if files are damaged, or an index names files that are not there or lie
            outside the directory.
    """
    if path.is_file():
        if path.suffix == ".safetensors":
            return SafetensorsSource([path], str(path))
        if path.suffix == ".npz":
            return NpzSource(path)
        if path.suffix in (".bin", ".pt"):
            return PickledSource([path], str(path))
        raise ValueError(f"{path}: expected a directory, or a .safetensors, .npz, .bin or .pt file")
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or directory")
    if (path / _SAFETENSORS).is_file():
        return SafetensorsSource([path / _SAFETENSORS], str(path))
    index = path / f"{_SAFETENSORS}.index.json"
    if index.is_file():
        weight_map = read_index(index)
        source = SafetensorsSource(_files(index, weight_map), str(path))
        _check_map(index, weight_map, source)
        return source
    if (path / _PICKLED).is_file():
        return PickledSource([path / _PICKLED], str(path))
    index = path / f"{_PICKLED}.index.json"
    if index.is_file():
        weight_map = read_index(index)
        source = PickledSource(_files(index, weight_map), str(path))
        _check_map(index, weight_map, source)
        return source
    raise FileNotFoundError(
        f"{path}: expected {_SAFETENSORS} or {_PICKLED}, or their .index.json; {_hint(path)}"
    )


def read_index(path: Path) -> dict[str, str]:
    """The ``weight_map`` of an index file: the file of each tensor.

    Raises:
        ValueError: if the file is not such an index.
    """
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise ValueError(f"{path}: expected a 'weight_map' from tensor to file names")
    return weight_map


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: if it holds anything else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected a JSON object: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found a {type(value).__name__}")
    return value


def _files(index: Path, weight_map: Mapping[str, str]) -> list[Path]:
    names = sorted(set(weight_map.values()))
    outside = [name for name in names if Path(name).name != name or name in ("", ".", "..")]
    if outside:
        raise ValueError(
            f"{index}: names {some(outside)}; expected plain names of files beside the index"
        )
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent:
        raise ValueError(f"{index}: names files that are not there: {some(absent)}")
    return [index.parent / name for name in names]


def _check_map(index: Path, weight_map: Mapping[str, str], source: TensorSource) -> None:
    absent = sorted(weight_map.keys() - source.tensors.keys())
    if absent:
        raise ValueError(f"{index}: names tensors that no file has: {some(absent)}")
    unlisted = sorted(source.tensors.keys() - weight_map.keys())
    if unlisted:
        raise ValueError(f"{index}: does not name tensors that its files have: {some(unlisted)}")


def _hint(path: Path) -> str:
    found = sorted(entry.name for entry in path.iterdir())
    if any((path / name).exists() for name in ("checkpoint", "_METADATA", "target")):
        return (
            "this looks like a T5X or Orbax directory: export it as one flat .npz or .safetensors "
            "file of arrays named target/... first"
        )
    return f"found {some(found) or 'nothing'}"
