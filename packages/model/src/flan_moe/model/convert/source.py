"""Where named tensors come from: what every kind of checkpoint has in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from flan_moe.model.convert.region import Index, Shape

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Dtypes of weights. Narrower ones come with scales that no naming scheme here knows."""


class TensorInfo(NamedTuple):
    """Shape and dtype of a tensor that has not been read."""

    shape: Shape
    dtype: torch.dtype


class TensorSource(Protocol):
    """Named tensors that are read one region at a time.

    Attributes:
        origin: the file or directory, for messages.
        tensors: what there is, by name.
    """

    origin: str
    tensors: Mapping[str, TensorInfo]

    def read(self, name: str, index: Index = ()) -> Tensor:
        """The region ``tensor[index]``."""


class StateSource:
    """The state dict of a model in memory.

    Args:
        state: tensors by name.
        origin: what to call it in messages.
    """

    def __init__(self, state: Mapping[str, Tensor], origin: str = "the model") -> None:
        self.origin = origin
        self.tensors = {name: TensorInfo(tuple(t.shape), t.dtype) for name, t in state.items()}
        self._state = state

    def read(self, name: str, index: Index = ()) -> Tensor:
        """The region ``tensor[index]``, a view on the CPU."""
        return self._state[name].detach()[index].cpu()


def check_tensors(
    source: TensorSource,
    expected: Mapping[str, Shape],
    *,
    allowed: frozenset[str] = frozenset(),
) -> None:
    """Compare what a source has with what it should have.

    Args:
        source: to check; nothing is read.
        expected: shapes by name.
        allowed: names that may be there besides.

    Raises:
        ValueError: naming tensors that are missing, that have no place, or that have another
            shape.
    """
    missing = sorted(set(expected) - set(source.tensors))
    extra = sorted(set(source.tensors) - set(expected) - allowed)
    problems = []
    if missing:
        problems.append(f"{_count(missing, 'tensor is', 'tensors are')} missing: {some(missing)}")
    if extra:
        problems.append(f"{_count(extra, 'tensor has', 'tensors have')} no place: {some(extra)}")
    wrong = [
        f"{name} has shape {source.tensors[name].shape}, expected {tuple(shape)}"
        for name, shape in expected.items()
        if name in source.tensors and source.tensors[name].shape != tuple(shape)
    ]
    if wrong:
        problems.append(some(wrong))
    if problems:
        raise ValueError(f"{source.origin}: {'; '.join(problems)}")


def check_floating(source: TensorSource, names: Iterable[str]) -> None:
    """Refuse weights that are quantised or no numbers of a model at all.

    Args:
        source: has the names; nothing is read.
        names: of the weights.

    Raises:
        ValueError: naming the weights and their dtypes.
    """
    wrong = [f"{name} is {d}" for name in names if (d := source.tensors[name].dtype) not in FLOATS]
    if wrong:
        expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
        raise ValueError(f"{source.origin}: {some(wrong)}; expected one of {expected}")


def some(names: list[str]) -> str:
    """The first few names, and how many more there are; what a terminal might obey is escaped."""
    shown = ", ".join(name if name.isprintable() else repr(name) for name in names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown


def _count(names: list[str], one: str, many: str) -> str:
    return f"{len(names)} {one if len(names) == 1 else many}"
