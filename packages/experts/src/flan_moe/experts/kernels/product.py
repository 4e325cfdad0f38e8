"""The inner loop of every product of rows with an expert's weight.

Accumulators are float32. Operands are multiplied in the dtype of the rows; a weight stored in
another (float32 under autocast) is converted tile by tile, never copied as a whole.
"""

# ruff: noqa: ANN001, ANN201 - what a kernel takes is annotated by Triton alone

from __future__ import annotations

import triton
import triton.language as tl

from flan_moe.experts.kernels.operands import row_tile, weight_tile


@triton.jit
def product(
    row_pointers,
    stride_rk,
    source,
    expert,
    first_n,
    size_k,
    end_n,
    stride_e,
    stride_k,
    stride_n,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    EVEN_N: tl.constexpr,
    LOAD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(BLOCK_M, BLOCK_N) float32: rows times the columns from ``first_n`` on of a weight."""
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, size_k, BLOCK_K):
        rows = row_tile(row_pointers, k, size_k, stride_rk, BLOCK_K, EVEN_K)
        weight = weight_tile(
            source, expert, k, first_n, size_k, end_n, stride_e, stride_k, stride_n,
            BLOCK_K, BLOCK_N, EVEN_K, EVEN_N, LOAD,
        )  # fmt: skip
        total = tl.dot(rows, weight.to(rows.dtype), total, input_precision=PRECISION)
    return total


@triton.jit
def product_pair(
    row_pointers,
    stride_rk,
    source,
    expert,
    first_n,
    second_n,
    size_k,
    stride_e,
    stride_k,
    stride_n,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    EVEN_N: tl.constexpr,
    LOAD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Two of `product`, for the columns from ``first_n`` and from ``second_n``, rows read once.

    One accumulator each: two products into one per iteration have been miscompiled on Blackwell.
    The halves are ``second_n - first_n`` columns wide.
    """
    first = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    second = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    half = second_n - first_n
    for k in range(0, size_k, BLOCK_K):
        rows = row_tile(row_pointers, k, size_k, stride_rk, BLOCK_K, EVEN_K)
        weight = weight_tile(
            source, expert, k, first_n, size_k, half, stride_e, stride_k, stride_n,
            BLOCK_K, BLOCK_N, EVEN_K, EVEN_N, LOAD,
        )  # fmt: skip
        first = tl.dot(rows, weight.to(rows.dtype), first, input_precision=PRECISION)
        weight = weight_tile(
            source, expert, k, second_n, size_k, 2 * half, stride_e, stride_k, stride_n,
            BLOCK_K, BLOCK_N, EVEN_K, EVEN_N, LOAD,
        )  # fmt: skip
        second = tl.dot(rows, weight.to(rows.dtype), second, input_precision=PRECISION)
    return first, second
