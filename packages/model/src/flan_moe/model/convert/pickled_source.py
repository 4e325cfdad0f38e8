"""Checkpoints that torch pickled, read without running any code of theirs."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from flan_moe.model.convert.region import Index
from flan_moe.model.convert.source import TensorInfo


class PickledSource:
    """Tensors of ``torch.save`` files, one of which is open at a time.

    A file in the format since torch 1.6 is mapped, so that reading a tensor reads its bytes only.
    An older one has to be read whole.

    Args:
        paths: the files.
        origin: the file or directory, for messages.

    Raises:
        ValueError: if a file is damaged, needs code to be unpickled, holds something that is no
            tensor, or two have a tensor of one name.
    """

    def __init__(self, paths: list[Path], origin: str) -> None:
        self.origin = origin
        self.tensors: dict[str, TensorInfo] = {}
        self._path: dict[str, Path] = {}
        self._open: tuple[Path, Mapping[str, Tensor]] | None = None
        for path in paths:
            for name, tensor in self._load(path).items():
                if name in self._path:
                    raise ValueError(f"{path}: {name} is in {self._path[name].name} too")
                self.tensors[name] = TensorInfo(tuple(tensor.shape), tensor.dtype)
                self._path[name] = path

    def read(self, name: str, index: Index = ()) -> Tensor:
        """The region ``tensor[index]``, a copy, so that it does not keep the file mapped."""
        return self._load(self._path[name])[name][index].clone()

    def _load(self, path: Path) -> Mapping[str, Tensor]:
        if self._open is None or self._open[0] != path:
            self._open = None  # before the next one, so that there are never two
            self._open = (path, _load(path))
        return self._open[1]


def _load(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except Exception as error:  # a damaged pickle fails in as many ways as there are instructions
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(
            f"{path}: does not load with torch.load(weights_only=True): it is damaged, or a pickle "
            f"that would have to run code; save it as safetensors where it comes from ({reason})"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(
            f"{path}: expected tensors by name, found a {type(state).__name__} (save a state dict)"
        )
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{path}: {name!r} is a {type(value).__name__}; expected tensors by name"
            )
    return state
