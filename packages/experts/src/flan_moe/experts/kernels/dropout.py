"""The factors of `flan_moe.experts.dropout.dropout_scale`, for one tile of rows and columns."""

# ruff: noqa: ANN001, ANN201 - what a kernel takes is annotated by Triton alone

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dropout_tile(
    seed,
    row,
    first_column,
    width,
    dropped_levels,
    scale,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """(BLOCK_M, BLOCK_N) float32, the same bits as on the host.

    Args:
        seed: int64 scalar.
        row: (BLOCK_M,) integer.
        first_column: a multiple of 16.
        width: of the whole row; the factors of columns past it mean nothing.
        dropped_levels: as `Dropout.dropped_levels`.
        scale: as `Dropout.scale`.
        BLOCK_M: rows.
        BLOCK_N: columns, a multiple of 16.
    """
    block = first_column // 16 + tl.arange(0, BLOCK_N // 16)
    # A width of one is a constant to the compiler, which has no methods.
    counter = row.to(tl.int64)[:, None] * ((width + 15) // 16) + block[None, :]
    zero = counter * 0
    word_0, word_1, word_2, word_3 = tl.philox(seed, counter, zero, zero, zero, 10)
    # join puts its two arguments along a new last axis: (.., upper bit, lower bit) of the index.
    words = tl.join(tl.join(word_0, word_2), tl.join(word_1, word_3))
    words = tl.reshape(words, (BLOCK_M, BLOCK_N // 4))
    shift = (16 * tl.arange(0, 4)).to(tl.uint64)
    levels = (words[:, :, None] >> shift[None, None, :]) & 0xFFFF
    levels = tl.reshape(levels, (BLOCK_M, BLOCK_N)).to(tl.int32)
    return tl.where(levels >= dropped_levels, scale, 0.0)
