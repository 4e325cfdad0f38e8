"""The gradient at the hidden layer: dy gathered, times wo transposed, back through the activation.

One product gives three things. With da = dy @ wo^T for the unweighted output of a row: the
gradient of the row's weight is <da, a> (because <dy, a @ wo> is), the pre-activation's is da
times the weight, the dropout factor and the activation's derivative, and weight * a is the
operand of the gradient of wo.

Shape suffixes: T tokens, R rows, E experts, D model width, F hidden width, H = 2F for gated
activations, else F, C column tiles.
"""

# ruff: noqa: ANN001, ANN202 - what a kernel takes is annotated by Triton alone

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from flan_moe.experts.activations import Activation
from flan_moe.experts.dropout import Dropout
from flan_moe.experts.kernels.activation import slope_from_output, value_and_slope
from flan_moe.experts.kernels.config import TileConfig
from flan_moe.experts.kernels.dropout import dropout_tile
from flan_moe.experts.kernels.launch import dot_precision, programs, weight_load
from flan_moe.experts.kernels.operands import row_tile, weight_source, weight_tile
from flan_moe.experts.kernels.schedule import TileTable, locate
from flan_moe.experts.kernels.slices import halves


class HiddenGradients(NamedTuple):
    """What `dhidden` gives; None where not asked for. Rows past the true count are undefined.

    Attributes:
        dh_RH: gradient of the pre-activation, in the dtype of the operands.
        weighted_RF: row weight times hidden activation (after dropout), the same dtype.
        partial_CR: float32; its sum over C is <da, a> of each row.
    """

    dh_RH: Tensor | None
    weighted_RF: Tensor | None
    partial_CR: Tensor | None


def dhidden(
    dy_TD: Tensor,
    row_token_R: Tensor,
    row_weight_R: Tensor,
    wo_EFD: Tensor,
    kept: Tensor,
    expert_offsets: Tensor,
    tiles: TileTable,
    activation: Activation,
    dropout: Dropout | None,
    *,
    want_dh: bool,
    want_weighted: bool,
    want_partial: bool,
    config: TileConfig,
) -> HiddenGradients:
    """See `HiddenGradients`.

    Args:
        dy_TD: in the dtype of the operands, any strides.
        row_token_R: (R,) int32.
        row_weight_R: float32, any stride.
        wo_EFD: any strides.
        kept: contiguous: a_RF after dropout if ``activation.keeps_output``, else h_RH.
        expert_offsets: (E+1,) int32.
        tiles: of ``config.block_m`` rows.
        activation: as in the forward pass.
        dropout: the same.
        want_dh: whether to make ``dh_RH``.
        want_weighted: whether to make ``weighted_RF``.
        want_partial: whether to make ``partial_CR``.
        config: tile sizes.
    """
    rows, hidden, width = row_token_R.shape[0], wo_EFD.shape[1], wo_EFD.shape[2]
    column_tiles = triton.cdiv(hidden, config.block_n)
    grads = HiddenGradients(
        torch.empty_like(kept) if want_dh else None,
        kept.new_empty(rows, hidden) if want_weighted else None,
        kept.new_empty(column_tiles, rows, dtype=torch.float32) if want_partial else None,
    )
    w_EDF = wo_EFD.transpose(1, 2)
    scale = 1.0 if dropout is None else dropout.scale
    # An activation kept by its output, after dropout, needs no mask: what was dropped is zero.
    remake_mask = dropout is not None and not activation.keeps_output
    _dhidden[(programs(tiles.bound * column_tiles, dy_TD.device, config),)](
        dy_TD,
        row_token_R,
        row_weight_R,
        w_EDF,
        kept,
        *grads,
        dropout.seed if remake_mask else None,
        dropout.dropped_levels if remake_mask else 0,
        scale,
        1.0 / scale if scale else 0.0,
        expert_offsets,
        tiles.expert_M,
        tiles.row_M,
        tiles.count,
        column_tiles,
        w_EDF.shape[0],
        rows,
        width,
        hidden,
        *dy_TD.stride(),
        row_weight_R.stride(0),
        *w_EDF.stride(),
        ACT=activation.act.name,
        GATED=activation.gated,
        FROM_OUTPUT=activation.keeps_output,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        GROUP_M=config.group_m,
        EVEN_K=width % config.block_k == 0,
        EVEN_N=hidden % config.block_n == 0,
        LOAD=weight_load(w_EDF, config, "transposed"),
        PRECISION=dot_precision(dy_TD.dtype),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return grads


@triton.jit(do_not_specialize=["R"])  # R differs from batch to batch
def _dhidden(
    dy_TD,
    row_token_R,
    row_weight_R,
    w_EDF,
    kept,
    dh_RH,
    weighted_RF,
    partial_CR,
    seed,
    dropped_levels,
    scale,
    inverse_scale,
    expert_offsets,
    tile_expert_M,
    tile_row_M,
    tile_count,
    column_tiles,
    experts,
    R,
    D,
    F,
    stride_yt,
    stride_yd,
    stride_weight,
    stride_we,
    stride_wd,
    stride_wf,
    ACT: tl.constexpr,
    GATED: tl.constexpr,
    FROM_OUTPUT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    EVEN_K: tl.constexpr,
    EVEN_N: tl.constexpr,
    LOAD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Persistent, grid (programs). A piece of work is a row tile and BLOCK_N columns of da."""
    source = weight_source(
        w_EDF, experts, D, F, stride_we, stride_wd, stride_wf, BLOCK_K, BLOCK_N, LOAD
    )
    row_tiles = tl.load(tile_count)
    for work in tl.range(tl.program_id(0), row_tiles * column_tiles, tl.num_programs(0)):
        row_block, column_block = locate(work, row_tiles, column_tiles, GROUP_M)
        expert = tl.load(tile_expert_M + row_block)
        row = tl.load(tile_row_M + row_block) + tl.arange(0, BLOCK_M)
        row_inside = row < tl.load(expert_offsets + expert + 1)
        token = tl.load(row_token_R + row, mask=row_inside, other=0)
        dy_rows = dy_TD + token.to(tl.int64) * stride_yt
        first_n = column_block * BLOCK_N
        da = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for k in range(0, D, BLOCK_K):
            dy = row_tile(dy_rows, k, D, stride_yd, BLOCK_K, EVEN_K)
            if LOAD == "transposed":
                w = tl.reshape(source.load([expert, first_n, k]), (BLOCK_N, BLOCK_K)).T
            else:
                w = weight_tile(
                    w_EDF, expert, k, first_n, D, F, stride_we, stride_wd, stride_wf,
                    BLOCK_K, BLOCK_N, EVEN_K, EVEN_N,
                )  # fmt: skip
            da = tl.dot(dy, w.to(dy.dtype), da, input_precision=PRECISION)
        row = row.to(tl.int64)
        weight = tl.load(row_weight_R + row * stride_weight, mask=row_inside, other=0.0)
        # As a whole, the tile and what is computed from it would not fit the registers.
        left, right = halves(da, BLOCK_M, BLOCK_N)
        partial = _pull_back(
            left, weight, row, row_inside, first_n, kept, dh_RH, weighted_RF,
            seed, dropped_levels, scale, inverse_scale, F,
            ACT, GATED, FROM_OUTPUT, BLOCK_M, BLOCK_N // 2,
        )  # fmt: skip
        partial += _pull_back(
            right, weight, row, row_inside, first_n + BLOCK_N // 2, kept, dh_RH, weighted_RF,
            seed, dropped_levels, scale, inverse_scale, F,
            ACT, GATED, FROM_OUTPUT, BLOCK_M, BLOCK_N // 2,
        )  # fmt: skip
        if partial_CR is not None:
            tl.store(partial_CR + column_block.to(tl.int64) * R + row, partial, mask=row_inside)


@triton.jit
def _pull_back(
    da,
    weight,
    row,
    row_inside,
    first_n,
    kept,
    dh_RH,
    weighted_RF,
    seed,
    dropped_levels,
    scale,
    inverse_scale,
    F,
    ACT: tl.constexpr,
    GATED: tl.constexpr,
    FROM_OUTPUT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Store what comes of BLOCK_N columns of da; their part of <da, a> of each row."""
    H = 2 * F if GATED else F
    n = first_n + tl.arange(0, BLOCK_N)
    inside = row_inside[:, None] & (n < F)[None, :]
    at_RH = row[:, None] * H + n[None, :]
    at_RF = row[:, None] * F + n[None, :]
    # a: the hidden activation after dropout; slope: of a in h, or in the gate half of h.
    first = tl.load(kept + at_RH, mask=inside, other=0.0).to(tl.float32)
    if FROM_OUTPUT:
        a = first
        # Zero where dropout or the activation zeroed a, see `Pointwise.of_output`.
        slope = slope_from_output(a * inverse_scale, ACT) * scale
    else:
        value, slope = value_and_slope(first, ACT)
        if seed is not None:
            factor = dropout_tile(
                tl.load(seed), row, first_n, F, dropped_levels, scale, BLOCK_M, BLOCK_N
            )
            value *= factor
            slope *= factor
        if GATED:
            linear = tl.load(kept + at_RH + F, mask=inside, other=0.0).to(tl.float32)
            a = value * linear
            slope *= linear
        else:
            a = value
    partial = tl.sum(tl.where(inside, da * a, 0.0), axis=1)
    if weighted_RF is not None:
        weighted = (weight[:, None] * a).to(weighted_RF.dtype.element_ty)
        tl.store(weighted_RF + at_RF, weighted, mask=inside)
    if dh_RH is not None:
        da *= weight[:, None]
        tl.store(dh_RH + at_RH, (da * slope).to(dh_RH.dtype.element_ty), mask=inside)
        if GATED:
            dlinear = (da * value).to(dh_RH.dtype.element_ty)
            tl.store(dh_RH + at_RH + F, dlinear, mask=inside)
    return partial
