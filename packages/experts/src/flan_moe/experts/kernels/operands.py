"""Operand tiles of a matrix product: gathered or contiguous rows, and one expert's weight.

A weight comes by plain pointers, whatever its strides, or through a tensor descriptor (TMA), whose
bounds check keeps a tile that overhangs inside its expert: it reads zeros there.

Shape suffixes: E experts, K contracted width, N output width.
"""

# ruff: noqa: ANN001, ANN201 - what a kernel takes is annotated by Triton alone

from __future__ import annotations

import triton
import triton.language as tl

if hasattr(tl, "make_tensor_descriptor"):

    @triton.jit
    def descriptor(base, shape, strides, block: tl.constexpr):
        """A tensor descriptor made on the device."""
        return tl.make_tensor_descriptor(base, shape, strides, block)

else:  # triton 3.3 and older

    @triton.jit
    def descriptor(base, shape, strides, block: tl.constexpr):
        """A tensor descriptor made on the device."""
        return tl._experimental_make_tensor_descriptor(base, shape, strides, block)


@triton.jit
def weight_source(
    w_EKN,
    experts,
    size_k,
    size_n,
    stride_e,
    stride_k,
    stride_n,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LOAD: tl.constexpr,
):
    """What a kernel loads a weight from, by ``LOAD``.

    "descriptor": a descriptor of the whole stack, N of unit stride, tiles (1, BLOCK_K, BLOCK_N).
    "transposed": the same where K is of unit stride, tiles (1, BLOCK_N, BLOCK_K). "pointers": the
    pointer itself, for `weight_tile`. Kernels load from a descriptor in their own bodies, because
    triton 3.3 passes none to a function.
    """
    if LOAD == "descriptor":
        source = descriptor(
            w_EKN, [experts, size_k, size_n], [stride_e, stride_k, 1], [1, BLOCK_K, BLOCK_N]
        )
    elif LOAD == "transposed":
        source = descriptor(
            w_EKN, [experts, size_n, size_k], [stride_e, stride_n, 1], [1, BLOCK_N, BLOCK_K]
        )
    else:
        tl.static_assert(LOAD == "pointers", "unknown way to load")
        source = w_EKN
    return source


@triton.jit
def weight_tile(
    w_EKN,
    expert,
    first_k,
    first_n,
    size_k,
    end_n,
    stride_e,
    stride_k,
    stride_n,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    EVEN_K: tl.constexpr,
    EVEN_N: tl.constexpr,
):
    """(BLOCK_K, BLOCK_N) of one expert's weight; zeros past ``size_k`` and ``end_n``."""
    k = first_k + tl.arange(0, BLOCK_K)
    n = first_n + tl.arange(0, BLOCK_N)
    here = w_EKN + expert.to(tl.int64) * stride_e
    pointers = here + k.to(tl.int64)[:, None] * stride_k + n.to(tl.int64)[None, :] * stride_n
    if EVEN_K and EVEN_N:
        tile = tl.load(pointers)
    elif EVEN_K:
        tile = tl.load(pointers, mask=(n < end_n)[None, :], other=0.0)
    elif EVEN_N:
        tile = tl.load(pointers, mask=(k < size_k)[:, None], other=0.0)
    else:
        mask = (k < size_k)[:, None] & (n < end_n)[None, :]
        tile = tl.load(pointers, mask=mask, other=0.0)
    return tile


@triton.jit
def row_tile(row_pointers, first_k, size_k, stride_k, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr):
    """(BLOCK_M, BLOCK_K) of the rows that ``row_pointers`` (BLOCK_M,) start; zeros past K."""
    k = first_k + tl.arange(0, BLOCK_K)
    pointers = row_pointers[:, None] + k.to(tl.int64)[None, :] * stride_k
    mask = None if EVEN_K else (k < size_k)[None, :]
    return tl.load(pointers, mask=mask, other=None if EVEN_K else 0.0)
