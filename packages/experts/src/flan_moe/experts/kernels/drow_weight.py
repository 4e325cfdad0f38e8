"""The gradient of the row weights, from `dhidden`'s partial sums and the output bias.

Shape suffixes: T tokens, R rows, E experts, D model width, C column tiles of `dhidden`.
"""

# ruff: noqa: ANN001, ANN202 - what a kernel takes is annotated by Triton alone

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from flan_moe.experts.kernels.schedule import TileTable

_BLOCK_D = 64


def drow_weight(
    partial_CR: Tensor,
    dy_TD: Tensor,
    row_token_R: Tensor,
    bo_ED: Tensor | None,
    expert_offsets: Tensor,
    tiles: TileTable,
) -> Tensor:
    """``sum over C of partial + <dy, bo>`` of each row, (R,) float32.

    Summed in a fixed order; zero past ``expert_offsets[-1]``.

    Args:
        partial_CR: float32, contiguous.
        dy_TD: any strides; read only with a bias.
        row_token_R: (R,) int32.
        bo_ED: any strides, or None.
        expert_offsets: (E+1,) int32.
        tiles: of any size.
    """
    drow_weight_R = partial_CR.new_zeros(partial_CR.shape[1])
    _drow_weight[(tiles.bound,)](
        partial_CR,
        dy_TD,
        row_token_R,
        bo_ED,
        drow_weight_R,
        expert_offsets,
        tiles.expert_M,
        tiles.row_M,
        tiles.count,
        *partial_CR.shape,
        dy_TD.shape[1],
        *dy_TD.stride(),
        *(bo_ED.stride() if bo_ED is not None else (0, 0)),
        BLOCK_M=tiles.block_m,
        BLOCK_D=_BLOCK_D,
    )
    return drow_weight_R


@triton.jit(do_not_specialize=["R"])  # R differs from batch to batch
def _drow_weight(
    partial_CR,
    dy_TD,
    row_token_R,
    bo_ED,
    drow_weight_R,
    expert_offsets,
    tile_expert_M,
    tile_row_M,
    tile_count,
    C,
    R,
    D,
    stride_yt,
    stride_yd,
    stride_be,
    stride_bd,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid (bound of row tiles); programs past the true number have nothing to do."""
    row_tile = tl.program_id(0)
    if row_tile >= tl.load(tile_count):
        return
    expert = tl.load(tile_expert_M + row_tile)
    row = tl.load(tile_row_M + row_tile) + tl.arange(0, BLOCK_M)
    inside = row < tl.load(expert_offsets + expert + 1)
    row = row.to(tl.int64)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    partial = partial_CR + row
    for _ in range(C):
        total += tl.load(partial, mask=inside, other=0.0)
        partial += R
    if bo_ED is not None:
        token = tl.load(row_token_R + row, mask=inside, other=0).to(tl.int64)
        bias = bo_ED + expert.to(tl.int64) * stride_be
        for first in range(0, D, BLOCK_D):
            d = first + tl.arange(0, BLOCK_D)
            at = dy_TD + token[:, None] * stride_yt + d.to(tl.int64)[None, :] * stride_yd
            mask = inside[:, None] & (d < D)[None, :]
            dy = tl.load(at, mask=mask, other=0.0).to(tl.float32)
            b = tl.load(bias + d.to(tl.int64) * stride_bd, mask=d < D, other=0.0)
            total += tl.sum(dy * b.to(tl.float32)[None, :], axis=1)
    tl.store(drow_weight_R + row, total, mask=inside)
