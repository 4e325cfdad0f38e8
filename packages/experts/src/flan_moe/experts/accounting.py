"""What a call of the experts costs: arithmetic, memory traffic, bytes kept, least time.

Nothing is allocated: these are formulas of a call's shape. The traffic is that of the schedule
which keeps only the tokens and the pre-activation for the backward pass (SonicMoE, Guo et al.
2025, section 3), each of its kernels reading every operand once and writing every result once.

Symbols: T tokens, R rows, E experts, D model width, F hidden width, H = 2F for gated
activations, else F.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from flan_moe.experts.activations import Activation, get_activation

INDEX_BYTES = 4
SEED_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class CallShape:
    """The sizes of one call.

    Attributes:
        tokens: T.
        rows: R, the true row count for `flops` and the traffic. On a GPU what is *kept* has the
            size of the bound that the host knows, `flan_moe.routing.Routing.num_rows`.
        num_experts: E.
        d_model: D.
        d_ff: F.
        activation: a key of `ACTIVATIONS`.
        touched_experts: how many experts have rows; None: as many as there can be, min(E, R).

    Raises:
        ValueError: naming the size, its value and what was expected.
    """

    tokens: int
    rows: int
    num_experts: int
    d_model: int
    d_ff: int
    activation: str
    touched_experts: int | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("tokens", 0),
            ("rows", 0),
            ("num_experts", 1),
            ("d_model", 1),
            ("d_ff", 1),
        ):
            size = getattr(self, name)
            if size < least:
                raise ValueError(f"{name}={size!r}: expected at least {least}")
        most = min(self.num_experts, self.rows)
        if self.touched_experts is not None and not 0 <= self.touched_experts <= most:
            raise ValueError(
                f"touched_experts={self.touched_experts!r}: expected 0 to {most}, for "
                f"num_experts={self.num_experts} and rows={self.rows}"
            )
        get_activation(self.activation)

    @property
    def act(self) -> Activation:
        """The activation."""
        return get_activation(self.activation)

    @property
    def h_width(self) -> int:
        """H."""
        return 2 * self.d_ff if self.act.gated else self.d_ff

    @property
    def touched(self) -> int:
        """How many experts have rows."""
        most = min(self.num_experts, self.rows)
        return most if self.touched_experts is None else self.touched_experts


class Passes(NamedTuple):
    """One number for each pass, in the unit of the function that returns it."""

    forward: float
    backward: float

    @property
    def both(self) -> float:
        """Their sum."""
        return self.forward + self.backward


def flops(shape: CallShape) -> Passes:
    """Floating-point operations of the matrix products, two per multiply-add.

    Forward ``2 R D (H + F)``, that is ``6 R D F`` for gated activations and ``4 R D F`` otherwise;
    backward twice that. Not counted: activation, dropout, biases, combining, and what computing
    an activation again costs. The backward pass of the schedule computes no product again.
    """
    forward = 2 * shape.rows * shape.d_model * (shape.h_width + shape.d_ff)
    return Passes(forward, 2 * forward)


@dataclass(frozen=True, kw_only=True)
class SavedBytes:
    """Bytes that live from forward to backward, apart from parameters, which live anyway.

    Attributes:
        x: the tokens, in their own dtype. The caller's tensor, not a copy.
        kept: the pre-activation, or, for activations with ``keeps_output``, the hidden
            activation, in the dtype of the matrix products.
        index: the four int32 vectors of the routing.
        row_weight: the combine weights.
        seed: of expert dropout.
    """

    x: int
    kept: int
    index: int
    row_weight: int
    seed: int

    @property
    def total(self) -> int:
        """The sum of the parts."""
        return self.x + self.kept + self.index + self.row_weight + self.seed


def saved_bytes(
    shape: CallShape,
    *,
    dtype: torch.dtype,
    matmul_dtype: torch.dtype | None = None,
    dropout: bool = False,
) -> SavedBytes:
    """What one call keeps for its backward pass if every gradient is wanted.

    Args:
        shape: of the call, with the rows that are allocated.
        dtype: of the tokens.
        matmul_dtype: of the matrix products: the autocast dtype under autocast; None: ``dtype``.
        dropout: whether expert dropout is on.
    """
    products = dtype if matmul_dtype is None else matmul_dtype
    width = shape.d_ff if shape.act.keeps_output else shape.h_width
    index_entries = 2 * shape.rows + (shape.num_experts + 1) + (shape.tokens + 1)
    row_weight_dtype = torch.promote_types(dtype, torch.float32)
    return SavedBytes(
        x=shape.tokens * shape.d_model * dtype.itemsize,
        kept=shape.rows * width * products.itemsize,
        index=index_entries * INDEX_BYTES,
        row_weight=shape.rows * row_weight_dtype.itemsize,
        seed=SEED_BYTES if dropout else 0,
    )


class Kernel(NamedTuple):
    """One kernel of the schedule.

    Attributes:
        name: what it computes.
        flops: of its matrix product.
        bytes: read plus written.
    """

    name: str
    flops: int
    bytes: int


class Schedule(NamedTuple):
    """The kernels of each pass, in order."""

    forward: tuple[Kernel, ...]
    backward: tuple[Kernel, ...]


def schedule(shape: CallShape, *, dtype: torch.dtype) -> Schedule:
    """The kernels of a call and the least traffic of each, everything in ``dtype``.

    Weights of experts with rows are read once per product that uses them; weight gradients are
    written once, for all experts, those without rows being zeros. A token is read once from
    memory however many experts gather it; an activation with ``keeps_output`` writes only its
    output and reads it where others read one and write the other. Left out: index vectors, row
    weights and their gradient (a few bytes per row against D of them), biases.
    """
    tokens, rows, d_model, d_ff = shape.tokens, shape.rows, shape.d_model, shape.d_ff
    x, x_rows = tokens * d_model, rows * d_model
    h, a = rows * shape.h_width, rows * d_ff
    wi, wo = shape.touched * d_model * shape.h_width, shape.touched * d_ff * d_model
    dwi, dwo = shape.num_experts * d_model * shape.h_width, shape.num_experts * d_ff * d_model
    up_flops, down_flops = 2 * rows * d_model * shape.h_width, 2 * rows * d_ff * d_model
    kept = a if shape.act.keeps_output else h
    again = 0 if shape.act.keeps_output else a

    def kernel(name: str, flops: int, elements: int) -> Kernel:
        return Kernel(name, flops, elements * dtype.itemsize)

    return Schedule(
        forward=(
            kernel("up and activation", up_flops, x + wi + kept + again),
            kernel("down", down_flops, a + wo + x_rows),
            kernel("combine", 0, x_rows + x),
        ),
        backward=(
            kernel("gradient of h", down_flops, x + wo + kept + h + again),
            kernel("gradient of wo", down_flops, a + x + dwo),
            kernel("gradient of the rows of x", up_flops, h + wi + x_rows),
            kernel("combine", 0, x_rows + x),
            kernel("gradient of wi", up_flops, x + h + dwi),
        ),
    )


def bytes_moved(shape: CallShape, *, dtype: torch.dtype) -> Passes:
    """Least bytes read plus written by each pass: the sum over `schedule`."""
    kernels = schedule(shape, dtype=dtype)
    return Passes(*(sum(kernel.bytes for kernel in one_pass) for one_pass in kernels))


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """The least time of a pass on a device that does nothing else.

    Attributes:
        seconds: sum over the kernels of the longer of computing and moving.
        flops_per_second: what the pass then attains, useful work over time.
        bound_by: what the larger part of the time goes to kernels limited by.
    """

    seconds: float
    flops_per_second: float
    bound_by: Literal["compute", "memory"]


class Rooflines(NamedTuple):
    """One for each pass, and one for both together."""

    forward: Roofline
    backward: Roofline
    both: Roofline


def roofline(
    shape: CallShape,
    *,
    dtype: torch.dtype,
    peak_flops_per_second: float,
    peak_bytes_per_second: float,
) -> Rooflines:
    """The ceiling of `schedule` on a device with these two rates.

    Kernels do not overlap, and each is limited by one of the two: ``max(flops / peak, bytes /
    peak)``.

    Raises:
        ValueError: if a rate is not positive.
    """
    for name, rate in (
        ("peak_flops_per_second", peak_flops_per_second),
        ("peak_bytes_per_second", peak_bytes_per_second),
    ):
        if not rate > 0.0:
            raise ValueError(f"{name}={rate!r}: expected a positive rate")

    def of(kernels: tuple[Kernel, ...]) -> Roofline:
        computing = moving = 0.0
        for kernel in kernels:
            compute = kernel.flops / peak_flops_per_second
            memory = kernel.bytes / peak_bytes_per_second
            if compute >= memory:
                computing += compute
            else:
                moving += memory
        seconds = computing + moving
        work = sum(kernel.flops for kernel in kernels)
        return Roofline(
            seconds=seconds,
            flops_per_second=work / seconds if seconds else 0.0,
            bound_by="compute" if computing >= moving else "memory",
        )

    forward, backward = schedule(shape, dtype=dtype)
    return Rooflines(of(forward), of(backward), of(forward + backward))
