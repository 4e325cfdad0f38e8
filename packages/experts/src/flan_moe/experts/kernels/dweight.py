"""Gradients of a weight stack: for each expert, the product of its rows on both sides, over rows.

Shape suffixes: R rows, E experts, M and N the two widths, X either R or T (rows or, gathered,
tokens).
"""

# ruff: noqa: ANN001, ANN202 - what a kernel takes is annotated by Triton alone

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from flan_moe.experts.kernels.config import TileConfig
from flan_moe.experts.kernels.launch import dot_precision
from flan_moe.experts.kernels.schedule import locate


def dweight(
    left_XM: Tensor,
    right_XN: Tensor,
    row_token_R: Tensor,
    expert_offsets: Tensor,
    *,
    gather_left: bool,
    out_EMN: Tensor,
    accumulate: bool,
    config: TileConfig,
) -> None:
    """Write, or with ``accumulate`` add, the sum over an expert's rows r of left[r]^T right[r].

    Accumulates over rows in float32, in their order. Without ``accumulate`` experts without rows
    get zeros, so that ``out_EMN`` may be uninitialised; with it they are not touched.

    Args:
        left_XM: any strides; (T, M), read at the row's token, if ``gather_left``, else (R, M).
        right_XN: any strides; (R, N) if ``gather_left``, else (T, N), read at the row's token.
        row_token_R: (R,) int32.
        expert_offsets: (E+1,) int32.
        gather_left: which side is indexed by tokens.
        out_EMN: any strides and floating dtype.
        accumulate: whether to add to what is there.
        config: tile sizes.
    """
    experts, size_m, size_n = out_EMN.shape
    tiles_m, tiles_n = triton.cdiv(size_m, config.block_m), triton.cdiv(size_n, config.block_n)
    _dweight[(tiles_m * tiles_n, experts)](
        left_XM,
        right_XN,
        row_token_R,
        expert_offsets,
        out_EMN,
        tiles_m,
        tiles_n,
        size_m,
        size_n,
        *left_XM.stride(),
        *right_XN.stride(),
        *out_EMN.stride(),
        GATHER_LEFT=gather_left,
        ACCUMULATE=accumulate,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        GROUP_M=config.group_m,
        EVEN_M=size_m % config.block_m == 0,
        EVEN_N=size_n % config.block_n == 0,
        PRECISION=dot_precision(left_XM.dtype),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


@triton.jit
def _dweight(
    left_XM,
    right_XN,
    row_token_R,
    expert_offsets,
    out_EMN,
    tiles_m,
    tiles_n,
    M,
    N,
    stride_lx,
    stride_lm,
    stride_rx,
    stride_rn,
    stride_oe,
    stride_om,
    stride_on,
    GATHER_LEFT: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    EVEN_M: tl.constexpr,
    EVEN_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid (tiles of an expert's weight, E). The tiles go column by column in groups of GROUP_M."""
    expert = tl.program_id(1)
    begin = tl.load(expert_offsets + expert)
    end = tl.load(expert_offsets + expert + 1)
    tile_m, tile_n = locate(tl.program_id(0), tiles_m, tiles_n, GROUP_M)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    left = left_XM + m.to(tl.int64)[:, None] * stride_lm
    right = right_XN + n.to(tl.int64)[None, :] * stride_rn
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for first in range(begin, end, BLOCK_K):
        row = first + tl.arange(0, BLOCK_K)
        # Both sides: what lies past the end may be NaN, which zero does not cancel.
        inside = row < end
        token = tl.load(row_token_R + row, mask=inside, other=0).to(tl.int64)
        row = row.to(tl.int64)
        left_x = token if GATHER_LEFT else row
        right_x = row if GATHER_LEFT else token
        left_mask = inside[None, :] if EVEN_M else inside[None, :] & (m < M)[:, None]
        right_mask = inside[:, None] if EVEN_N else inside[:, None] & (n < N)[None, :]
        left_tile = tl.load(left + left_x[None, :] * stride_lx, mask=left_mask, other=0.0)
        right_tile = tl.load(right + right_x[:, None] * stride_rx, mask=right_mask, other=0.0)
        total = tl.dot(left_tile, right_tile, total, input_precision=PRECISION)
    out = out_EMN + expert.to(tl.int64) * stride_oe + m.to(tl.int64)[:, None] * stride_om
    out += n.to(tl.int64)[None, :] * stride_on
    out_mask = (m < M)[:, None] & (n < N)[None, :]
    if ACCUMULATE:
        # Nothing to add to an expert without rows.
        out_mask = out_mask & (m < tl.where(begin < end, M, 0))[:, None]
        total += tl.load(out, mask=out_mask, other=0.0).to(tl.float32)
    tl.store(out, total.to(out_EMN.dtype.element_ty), mask=out_mask)
