"""Measurements that are made when somebody reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor


class OnDemand(Mapping[str, Tensor]):
    """A read-only mapping whose content is computed at the first access, then kept.

    In a step of a generation the losses and statistics of a router cost more than its decision,
    and nobody reads them.

    Args:
        make: computes the content; holds on to whatever that takes.
    """

    def __init__(self, make: Callable[[], Mapping[str, Tensor]]) -> None:
        self._make: Callable[[], Mapping[str, Tensor]] | None = make
        self._made: Mapping[str, Tensor] = {}

    def __getitem__(self, key: str) -> Tensor:
        return self._content()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._content())

    def __len__(self) -> int:
        return len(self._content())

    def __repr__(self) -> str:
        return repr(self._content())

    def _content(self) -> Mapping[str, Tensor]:
        if self._make is not None:
            self._made = self._make()
            self._make = None  # what it held may go
        return self._made
