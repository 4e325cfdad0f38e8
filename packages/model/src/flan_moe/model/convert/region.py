"""Regions of named tensors, and links that say which region equals which.

A list of links is a naming scheme: read one way it imports a checkpoint, read the other way it
exports one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Index = tuple[int | slice, ...]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Region:
    """``tensor[index]`` of the tensor with a name.

    Attributes:
        name: of the tensor.
        index: for each leading axis an integer or a slice; the whole tensor if empty.
    """

    name: str
    index: Index = ()


@dataclass(frozen=True)
class Link:
    """Two regions hold the same numbers.

    Attributes:
        target: the one to fill.
        source: the one to read.
        transposed: whether one is the transpose of the other.
    """

    target: Region
    source: Region
    transposed: bool = False

    def reversed(self) -> Link:
        """The same equality with the roles exchanged."""
        return Link(self.source, self.target, self.transposed)


def whole(target: str, source: str, *, transposed: bool = False) -> Link:
    """A link between two whole tensors."""
    return Link(Region(target), Region(source), transposed)


def split_rows(index: Index, shape: Shape) -> tuple[range, Index]:
    """An index as the rows of the first axis that it needs, and what to take of those rows.

    Args:
        index: of a region; slices have no step.
        shape: of the tensor.

    Returns:
        The rows (one for a tensor without axes), and an index into them: ``tensor[index]`` equals
        ``tensor[rows.start:rows.stop][rest]``.
    """
    if not shape:
        return range(1), ()
    if not index:
        return range(shape[0]), ()
    first, *others = index
    if isinstance(first, int):
        return range(first, first + 1), (0, *others)
    return range(*first.indices(shape[0])), (slice(None), *others)


def region_shape(shape: Shape, index: Index) -> Shape:
    """Shape of ``tensor[index]``."""
    kept = [
        len(range(*axis.indices(size)))
        for axis, size in zip(index, shape, strict=False)
        if isinstance(axis, slice)
    ]
    return (*kept, *shape[len(index) :])


def source_shapes(links: Iterable[Link], target_shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Shapes that the sources of links must have.

    Sources are whole tensors, or all entries of their first axis, one per link.

    Raises:
        KeyError: for a target without a shape.
    """
    shapes: dict[str, Shape] = {}
    for link in links:
        shape = region_shape(target_shapes[link.target.name], link.target.index)
        if link.transposed:
            shape = shape[::-1]
        for entry in link.source.index:
            count = max(entry + 1, shapes.get(link.source.name, (0,))[0])
            shape = (count, *shape)
        shapes[link.source.name] = shape
    return shapes
