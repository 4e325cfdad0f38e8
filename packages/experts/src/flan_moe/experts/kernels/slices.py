"""An accumulator in column slices, so that an epilogue holds one slice in registers at a time."""

# ruff: noqa: ANN001, ANN201 - what a kernel takes is annotated by Triton alone

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def halves(tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The left and the right half of a (ROWS, COLUMNS) tile."""
    pairs = tl.permute(tl.reshape(tile, (ROWS, 2, COLUMNS // 2)), (0, 2, 1))
    return tl.split(pairs)
