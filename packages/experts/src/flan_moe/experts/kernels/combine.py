"""From rows back to tokens: a gather and a sum in a fixed order, each token written once.

Shape suffixes: T tokens, R rows, D model width.
"""

# ruff: noqa: ANN001, ANN202 - what a kernel takes is annotated by Triton alone

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_MOST_COLUMNS = 1024


def combine(
    y_RD: Tensor,
    row_weight_R: Tensor | None,
    token_offsets: Tensor,
    token_row_R: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """The sum over each token's rows of ``weight * y``, (T, D) in ``dtype``.

    Accumulates in float32, in the order of ``token_row_R``. A token without rows gets zeros.

    Args:
        y_RD: contiguous.
        row_weight_R: any stride; None for weights of one.
        token_offsets: (T+1,) int32, as in `flan_moe.routing.Routing`.
        token_row_R: (R,) int32, the same.
        dtype: of the result.
    """
    tokens, width = token_offsets.shape[0] - 1, y_RD.shape[1]
    y_TD = y_RD.new_empty(tokens, width, dtype=dtype)
    block = min(_MOST_COLUMNS, triton.next_power_of_2(width))
    _combine[(tokens, triton.cdiv(width, block))](
        y_RD,
        row_weight_R,
        token_offsets,
        token_row_R,
        y_TD,
        width,
        0 if row_weight_R is None else row_weight_R.stride(0),
        BLOCK=block,
        num_warps=max(1, min(4, block // 256)),
    )
    return y_TD


@triton.jit
def _combine(
    y_RD,
    row_weight_R,
    token_offsets,
    token_row_R,
    y_TD,
    D,
    stride_weight,
    BLOCK: tl.constexpr,
):
    """Grid (T, D / BLOCK)."""
    token = tl.program_id(0)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = d < D
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    begin = tl.load(token_offsets + token)
    end = tl.load(token_offsets + token + 1)
    for entry in range(begin, end):
        row = tl.load(token_row_R + entry).to(tl.int64)
        y = tl.load(y_RD + row * D + d, mask=inside, other=0.0).to(tl.float32)
        if row_weight_R is not None:
            y *= tl.load(row_weight_R + row * stride_weight)
        total += y
    y_out = y_TD + token.to(tl.int64) * D + d
    tl.store(y_out, total.to(y_TD.dtype.element_ty), mask=inside)
