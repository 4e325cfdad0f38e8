"""Target tensors, made part by part from the regions of a source."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flan_moe.model.convert.region import Link, Shape, region_shape
from flan_moe.model.convert.source import TensorSource

# Rows of a large tensor are copied in parts of about this many bytes.
PART_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Target:
    """A tensor that can be made.

    Attributes:
        name: of the tensor.
        shape: of the tensor.
        dtype: of the tensor.
        parts: starts making it; gives parts that follow each other along the first axis.
    """

    name: str
    shape: Shape
    dtype: torch.dtype
    parts: Callable[[], Iterator[Tensor]]

    @property
    def num_bytes(self) -> int:
        """Size of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    def tensor(self) -> Tensor:
        """The whole tensor at once."""
        flat = torch.empty(math.prod(self.shape), dtype=self.dtype)
        start = 0
        for part in self.parts():
            flat[start : start + part.numel()] = part.reshape(-1)
            start += part.numel()
        return flat.view(self.shape)


def assembled(
    links: Iterable[Link], shapes: Mapping[str, Shape], source: TensorSource
) -> list[Target]:
    """The targets of links, in the order of ``shapes``.

    Args:
        links: which together cover every target exactly once.
        shapes: of the targets.
        source: where the regions are read when parts are made.

    Raises:
        ValueError: if the regions of one target have different dtypes.
        KeyError: for a target without links.
    """
    by_name: dict[str, list[Link]] = {}
    for link in links:
        by_name.setdefault(link.target.name, []).append(link)
    targets = []
    for name, shape in shapes.items():
        own = by_name[name]
        dtypes = {source.tensors[link.source.name].dtype for link in own}
        if len(dtypes) > 1:
            names = ", ".join(sorted({link.source.name for link in own})[:3])
            raise ValueError(
                f"{source.origin}: {names}, ... would make {name}, but have different dtypes: "
                f"{', '.join(sorted(map(str, dtypes)))}"
            )
        targets.append(Target(name, shape, dtypes.pop(), _Parts(own, shape, source)))
    return targets


@dataclass(frozen=True)
class _Parts:
    links: list[Link]
    shape: Shape
    source: TensorSource

    def __call__(self) -> Iterator[Tensor]:
        first = self.links[0]
        if not first.target.index and not first.source.index and not first.transposed:
            yield from row_parts(self.source, first.source.name)
            return
        groups: dict[int, list[Link]] = {}
        for link in self.links:
            groups.setdefault(_leading(link), []).append(link)
        for start in sorted(groups):
            yield self._part(groups[start])

    def _part(self, links: list[Link]) -> Tensor:
        if len(links) == 1:
            return _read(self.source, links[0])
        # Several regions with one leading index: the halves of an expert's gated projection.
        shape = region_shape(self.shape, links[0].target.index[:1])
        out = torch.empty(shape, dtype=self.source.tensors[links[0].source.name].dtype)
        for link in links:
            out[link.target.index[1:]] = _read(self.source, link)
        return out


def row_parts(source: TensorSource, name: str) -> Iterator[Tensor]:
    """A tensor of a source in parts of at most `PART_BYTES`, or one row if that is larger."""
    info = source.tensors[name]
    if not info.shape or 0 in info.shape:
        yield source.read(name)
        return
    row_bytes = math.prod(info.shape[1:]) * info.dtype.itemsize
    step = max(1, PART_BYTES // row_bytes)
    for start in range(0, info.shape[0], step):
        yield source.read(name, (slice(start, min(start + step, info.shape[0])),))


def _leading(link: Link) -> int:
    if not link.target.index:
        return 0
    first = link.target.index[0]
    return first if isinstance(first, int) else first.start


def _read(source: TensorSource, link: Link) -> Tensor:
    value = source.read(link.source.name, link.source.index)
    return value.mT if link.transposed else value
