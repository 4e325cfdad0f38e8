"""Gradients of a bias stack: for each expert, the sum of its rows, in their order.

Shape suffixes: R rows, T tokens, E experts, N width, X either R or T.
"""

# ruff: noqa: ANN001, ANN202 - what a kernel takes is annotated by Triton alone

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK_R = 32
_BLOCK_N = 64


def dbias(
    rows_XN: Tensor,
    row_token_R: Tensor | None,
    row_weight_R: Tensor | None,
    expert_offsets: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """The sum over an expert's rows r of ``weight[r] * rows[r]``, (E, N) in ``dtype``.

    Accumulates in float32. An expert without rows gets zeros.

    Args:
        rows_XN: any strides; (T, N), read at the row's token, if ``row_token_R`` is given.
        row_token_R: (R,) int32, or None to read ``rows_XN`` (R, N) at the row.
        row_weight_R: any stride; None for weights of one.
        expert_offsets: (E+1,) int32.
        dtype: of the result.
    """
    experts, width = expert_offsets.shape[0] - 1, rows_XN.shape[1]
    db_EN = rows_XN.new_empty(experts, width, dtype=dtype)
    _dbias[(triton.cdiv(width, _BLOCK_N), experts)](
        rows_XN,
        row_token_R,
        row_weight_R,
        expert_offsets,
        db_EN,
        width,
        *rows_XN.stride(),
        0 if row_weight_R is None else row_weight_R.stride(0),
        BLOCK_R=_BLOCK_R,
        BLOCK_N=_BLOCK_N,
    )
    return db_EN


@triton.jit
def _dbias(
    rows_XN,
    row_token_R,
    row_weight_R,
    expert_offsets,
    db_EN,
    N,
    stride_x,
    stride_n,
    stride_weight,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Grid (N / BLOCK_N, E)."""
    expert = tl.program_id(1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    begin = tl.load(expert_offsets + expert)
    end = tl.load(expert_offsets + expert + 1)
    total = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for first in range(begin, end, BLOCK_R):
        row = first + tl.arange(0, BLOCK_R)
        inside = row < end
        x = row.to(tl.int64)
        if row_token_R is not None:
            x = tl.load(row_token_R + row, mask=inside, other=0).to(tl.int64)
        pointers = rows_XN + x[:, None] * stride_x + n.to(tl.int64)[None, :] * stride_n
        mask = inside[:, None] & (n < N)[None, :]
        tile = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
        if row_weight_R is not None:
            at = row_weight_R + row.to(tl.int64) * stride_weight
            tile *= tl.load(at, mask=inside, other=0.0)[:, None]
        total += tl.sum(tile, axis=0)
    out = db_EN + expert.to(tl.int64) * N + n
    tl.store(out, total.to(db_EN.dtype.element_ty), mask=n < N)
