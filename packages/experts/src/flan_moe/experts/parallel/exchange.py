"""All-to-all of rows between the ranks of a group: differentiable, and in two halves.

Rows are started and later waited for; what is computed in between hides their way. So it is in
the backward pass: the gradients start where the rows were waited for and are waited for where the
rows were started. Autograd runs backward in the reverse order of forward, so that the backward
pass of whatever was computed in between lies in between again.

Every rank of the group must run forward as well as backward, rows or no rows: the others wait for
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """How many rows this rank exchanges with each rank of a group.

    Attributes:
        send: to each rank in order; the rows for a rank are contiguous.
        receive: from each rank in order; they arrive in the order of the ranks.
        group: whose ranks take part.
    """

    send: list[int]
    receive: list[int]
    group: distributed.ProcessGroup

    @property
    def back(self) -> Traffic:
        """The reverse."""
        return Traffic(send=self.receive, receive=self.send, group=self.group)


class Exchange:
    """Rows under way between ranks, made by `start_exchange`; wait for them once."""

    def __init__(self, tensors: Sequence[Tensor], traffic: Traffic) -> None:
        self._link = _Link(traffic)
        self._arriving = _Start.apply(self._link, *tensors)

    def wait(self) -> tuple[Tensor, ...]:
        """The received rows, (rows received, ...), one tensor for each that was sent."""
        arriving, self._arriving = self._arriving, None
        return _Wait.apply(self._link, *arriving)


def start_exchange(tensors: Sequence[Tensor], traffic: Traffic) -> Exchange:
    """Send rows of one or more tensors to their ranks, without waiting.

    Args:
        tensors: (rows sent, ...) each; a row of every tensor goes to the same rank.
        traffic: which rows go where.

    Returns:
        The rows under way. The gradient of a tensor comes back by the reverse exchange; tensors
        that need none cost nothing in the backward pass. Differentiable once.
    """
    return Exchange(tensors, traffic)


class _Flight:
    """All-to-alls of one direction, launched together and waited for together."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._works: list[distributed.Work] = []
        self._sent: list[Tensor] = []  # must live until it has been sent
        self._arriving: tuple[Tensor, ...] = ()

    def launch(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The buffers that `wait` will have filled."""
        send, receive, group = self._traffic.send, self._traffic.receive, self._traffic.group
        self._sent = [tensor.contiguous() for tensor in tensors]
        self._arriving = tuple(sent.new_empty(sum(receive), *sent.shape[1:]) for sent in self._sent)
        self._works = [
            distributed.all_to_all_single(buffer, sent, receive, send, group=group, async_op=True)
            for buffer, sent in zip(self._arriving, self._sent, strict=True)
        ]
        return self._arriving

    def wait(self) -> tuple[Tensor, ...]:
        """The buffers, filled (on a GPU, for whatever the current stream does next)."""
        for work in self._works:
            work.wait()
        arrived = self._arriving
        self._works, self._sent, self._arriving = [], [], ()
        return arrived


class _Link:
    """Both directions of one exchange, shared by its two halves."""

    def __init__(self, traffic: Traffic) -> None:
        self.forth = _Flight(traffic)
        self.back = _Flight(traffic.back)


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, link: _Link, *sent: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.link = link
        arriving = link.forth.launch(sent)
        _mark_frozen(ctx, arriving)
        return arriving

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        arrived = iter(ctx.link.back.wait())
        return None, *(next(arrived) if need else None for need in ctx.needs_input_grad[1:])


class _Wait(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, link: _Link, *arriving: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.link = link
        ctx.like = [(tensor.shape, tensor.dtype, tensor.device) for tensor in arriving]
        link.forth.wait()
        arrived = tuple(tensor.view_as(tensor) for tensor in arriving)
        _mark_frozen(ctx, arrived)
        return arrived

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        # A rank where nothing used the rows sends zeros: which exchanges take place must depend
        # only on what all ranks have in common.
        sent = [
            torch.zeros(shape, dtype=dtype, device=device) if gradient is None else gradient
            for gradient, need, (shape, dtype, device) in zip(
                gradients, ctx.needs_input_grad[1:], ctx.like, strict=True
            )
            if need
        ]
        ctx.link.back.launch(sent)
        # Autograd wants gradients of the shape of what was received; those of what was sent are
        # not there yet. These only make it go on to _Start, which does not look at them.
        passed = iter(sent)
        return None, *(next(passed) if need else None for need in ctx.needs_input_grad[1:])


def _mark_frozen(ctx: Any, outputs: tuple[Tensor, ...]) -> None:
    """Make an output need no gradient if its input needs none."""
    needed = ctx.needs_input_grad[1:]
    frozen = [out for out, need in zip(outputs, needed, strict=True) if not need]
    ctx.mark_non_differentiable(*frozen)
