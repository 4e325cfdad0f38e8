"""Rows of expert outputs back to tokens.

Shape suffixes: T tokens, R rows, D model width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from flan_moe.experts.backend import RowIndex


def sum_rows(
    value_RD: Tensor, weight_R: Tensor | None, index: RowIndex, *, dtype: torch.dtype
) -> Tensor:
    """Sum each token's rows, optionally weighted: a gather and a sum in a fixed order, no atomics.

    Summed in float32, or float64 for float64 values. A token without rows gets exactly zero.

    Args:
        value_RD: (R, D), exactly as many rows as the routing truly has.
        weight_R: (R,) factors, or None for ones.
        index: of the routing.
        dtype: of the (T, D) result.
    """
    sum_dtype = torch.promote_types(value_RD.dtype, torch.float32)
    rows, width = value_RD.shape
    if rows == 0:
        return value_RD.new_zeros((index.token_offsets.shape[0] - 1, width), dtype=dtype)
    token_row_R = index.token_row_R[:rows]
    if weight_R is not None:
        weight_R = weight_R.to(sum_dtype).index_select(0, token_row_R)
    return F.embedding_bag(
        token_row_R,
        value_RD.to(sum_dtype),
        index.token_offsets,
        mode="sum",
        per_sample_weights=weight_R,
        include_last_offset=True,
    ).to(dtype)
