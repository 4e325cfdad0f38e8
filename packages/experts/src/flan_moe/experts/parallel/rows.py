"""Tokens to rows and rows to tokens, each the other's gradient, without atomics.

Shape suffixes: T tokens, R rows (exactly as many as there truly are), D model width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flan_moe.experts.backend import RowIndex
from flan_moe.experts.combine import sum_rows


def tokens_to_rows(x_TD: Tensor, index: RowIndex, *, dtype: torch.dtype) -> Tensor:
    """The token of each row, (R, D) in ``dtype``; the gradient is summed in float32 or wider."""
    return _TokensToRows.apply(x_TD, index, dtype)


def rows_to_tokens(y_RD: Tensor, index: RowIndex, *, dtype: torch.dtype) -> Tensor:
    """The sum of each token's rows, (T, D) in ``dtype``; exactly zero for a token without rows.

    Summed in float32 or wider, in the order of ``token_row_R``.
    """
    return _RowsToTokens.apply(y_RD, index, dtype)


class _TokensToRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, index: RowIndex, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(*index)
        ctx.dtype = x_TD.dtype
        return x_TD.to(dtype).index_select(0, index.row_token_R)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx_RD: Tensor) -> tuple[Tensor | None, ...]:
        return sum_rows(dx_RD, None, RowIndex(*ctx.saved_tensors), dtype=ctx.dtype), None, None


class _RowsToTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_RD: Tensor, index: RowIndex, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(index.row_token_R)
        ctx.dtype = y_RD.dtype
        return sum_rows(y_RD, None, index, dtype=dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TD: Tensor) -> tuple[Tensor | None, ...]:
        (row_token_R,) = ctx.saved_tensors
        return dy_TD.to(ctx.dtype).index_select(0, row_token_R), None, None
