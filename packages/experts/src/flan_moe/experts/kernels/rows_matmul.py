"""Rows times their expert's weight: the product down to the model width, and that of dX.

Shape suffixes: R rows, E experts, K contracted width, N output width.
"""

# ruff: noqa: ANN001, ANN202 - what a kernel takes is annotated by Triton alone

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from flan_moe.experts.kernels.config import TileConfig
from flan_moe.experts.kernels.launch import dot_precision, programs, rows_load, weight_load
from flan_moe.experts.kernels.operands import descriptor, row_tile, weight_source, weight_tile
from flan_moe.experts.kernels.schedule import TileTable, locate


def rows_matmul(
    left_RK: Tensor,
    w_EKN: Tensor,
    b_EN: Tensor | None,
    expert_offsets: Tensor,
    tiles: TileTable,
    *,
    config: TileConfig,
) -> Tensor:
    """``left[r] @ w[e] + b[e]`` for each row r of expert e: (R, N), in the dtype of ``left_RK``.

    Any strides; a transposed view of a stack costs nothing. Rows past ``expert_offsets[-1]`` are
    left as they were allocated.
    """
    rows, contracted = left_RK.shape
    width = w_EKN.shape[2]
    y_RN = left_RK.new_empty(rows, width)
    column_tiles = triton.cdiv(width, config.block_n)
    _rows_matmul[(programs(tiles.bound * column_tiles, left_RK.device, config),)](
        left_RK,
        w_EKN,
        b_EN,
        y_RN,
        expert_offsets,
        tiles.expert_M,
        tiles.row_M,
        tiles.count,
        column_tiles,
        w_EKN.shape[0],
        rows,
        contracted,
        width,
        *left_RK.stride(),
        *w_EKN.stride(),
        *(b_EN.stride() if b_EN is not None else (0, 0)),
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        GROUP_M=config.group_m,
        EVEN_K=contracted % config.block_k == 0,
        EVEN_N=width % config.block_n == 0,
        LOAD=weight_load(w_EKN, config, "descriptor", "transposed"),
        ROWS=rows_load(left_RK, config),
        PRECISION=dot_precision(left_RK.dtype),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return y_RN


@triton.jit(do_not_specialize=["R"])  # R differs from batch to batch
def _rows_matmul(
    left_RK,
    w_EKN,
    b_EN,
    y_RN,
    expert_offsets,
    tile_expert_M,
    tile_row_M,
    tile_count,
    column_tiles,
    experts,
    R,
    K,
    N,
    stride_lr,
    stride_lk,
    stride_we,
    stride_wk,
    stride_wn,
    stride_be,
    stride_bn,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    EVEN_K: tl.constexpr,
    EVEN_N: tl.constexpr,
    LOAD: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Persistent, grid (programs). A piece of work is a row tile and BLOCK_N columns of y."""
    # One loop of all steps, so that the loads of the next piece overlap the stores of this one.
    # Where a load is not by descriptor, that would keep the pipeline from it instead.
    FLATTEN: tl.constexpr = ROWS == "descriptor" and LOAD != "pointers"
    source = weight_source(
        w_EKN, experts, K, N, stride_we, stride_wk, stride_wn, BLOCK_K, BLOCK_N, LOAD
    )
    if ROWS == "descriptor":
        rows = descriptor(left_RK, [R, K], [stride_lr, 1], [BLOCK_M, BLOCK_K])
    row_tiles = tl.load(tile_count)
    for work in tl.range(
        tl.program_id(0), row_tiles * column_tiles, tl.num_programs(0), flatten=FLATTEN
    ):
        row_block, column_block = locate(work, row_tiles, column_tiles, GROUP_M)
        expert = tl.load(tile_expert_M + row_block)
        first_row = tl.load(tile_row_M + row_block)
        row = first_row + tl.arange(0, BLOCK_M)
        end = tl.load(expert_offsets + expert + 1)
        # What a row past the end reads is in bounds, and not stored.
        left_rows = left_RK + tl.minimum(row, end - 1).to(tl.int64) * stride_lr
        first_n = column_block * BLOCK_N
        n = first_n + tl.arange(0, BLOCK_N)
        y = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for k in range(0, K, BLOCK_K):
            if ROWS == "descriptor":
                left = rows.load([first_row, k])
            else:
                left = row_tile(left_rows, k, K, stride_lk, BLOCK_K, EVEN_K)
            if LOAD == "descriptor":
                w = tl.reshape(source.load([expert, k, first_n]), (BLOCK_K, BLOCK_N))
            elif LOAD == "transposed":
                w = tl.reshape(source.load([expert, first_n, k]), (BLOCK_N, BLOCK_K)).T
            else:
                w = weight_tile(
                    w_EKN, expert, k, first_n, K, N, stride_we, stride_wk, stride_wn,
                    BLOCK_K, BLOCK_N, EVEN_K, EVEN_N,
                )  # fmt: skip
            y = tl.dot(left, w.to(left.dtype), y, input_precision=PRECISION)
        if b_EN is not None:
            bias = b_EN + expert.to(tl.int64) * stride_be + n.to(tl.int64) * stride_bn
            y += tl.load(bias, mask=n < N, other=0.0).to(tl.float32)[None, :]
        inside = (row < end)[:, None] & (n < N)[None, :]
        y_out = y_RN + row.to(tl.int64)[:, None] * N + n[None, :]
        tl.store(y_out, y.to(y_RN.dtype.element_ty), mask=inside)
