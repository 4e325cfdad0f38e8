"""The first product with the activation in its epilogue: x gathered, times wi, to a.

Shape suffixes: T tokens, R rows, E experts, D model width, F hidden width, H = 2F for gated
activations, else F.
"""

# ruff: noqa: ANN001, ANN202 - what a kernel takes is annotated by Triton alone

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from flan_moe.experts.activations import Activation
from flan_moe.experts.dropout import Dropout
from flan_moe.experts.kernels.activation import activate
from flan_moe.experts.kernels.config import TileConfig
from flan_moe.experts.kernels.dropout import dropout_tile
from flan_moe.experts.kernels.launch import dot_precision, programs, weight_load
from flan_moe.experts.kernels.operands import row_tile, weight_source, weight_tile
from flan_moe.experts.kernels.schedule import TileTable, locate
from flan_moe.experts.kernels.slices import halves


def up(
    x_TD: Tensor,
    row_token_R: Tensor,
    wi_EDH: Tensor,
    bi_EH: Tensor | None,
    expert_offsets: Tensor,
    tiles: TileTable,
    activation: Activation,
    dropout: Dropout | None,
    *,
    keep: bool,
    config: TileConfig,
) -> tuple[Tensor, Tensor | None]:
    """The hidden activation a_RF after dropout, and with ``keep`` the pre-activation h_RH.

    Both in the dtype of ``x_TD``, which is that of the multiplied operands; any strides. Rows past
    ``expert_offsets[-1]`` are left as they were allocated.
    """
    rows, width = row_token_R.shape[0], x_TD.shape[1]
    hidden = wi_EDH.shape[2] // 2 if activation.gated else wi_EDH.shape[2]
    a_RF = x_TD.new_empty(rows, hidden)
    h_RH = x_TD.new_empty(rows, wi_EDH.shape[2]) if keep else None
    column_tiles = triton.cdiv(hidden, config.block_n)
    _up[(programs(tiles.bound * column_tiles, x_TD.device, config),)](
        x_TD,
        row_token_R,
        wi_EDH,
        bi_EH,
        h_RH,
        a_RF,
        None if dropout is None else dropout.seed,
        0 if dropout is None else dropout.dropped_levels,
        0.0 if dropout is None else dropout.scale,
        expert_offsets,
        tiles.expert_M,
        tiles.row_M,
        tiles.count,
        column_tiles,
        wi_EDH.shape[0],
        width,
        hidden,
        *x_TD.stride(),
        *wi_EDH.stride(),
        *(bi_EH.stride() if bi_EH is not None else (0, 0)),
        ACT=activation.act.name,
        GATED=activation.gated,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        GROUP_M=config.group_m,
        EVEN_K=width % config.block_k == 0,
        EVEN_N=hidden % config.block_n == 0,
        LOAD=weight_load(wi_EDH, config, "descriptor"),
        PRECISION=dot_precision(x_TD.dtype),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return a_RF, h_RH


@triton.jit
def _up(
    x_TD,
    row_token_R,
    wi_EDH,
    bi_EH,
    h_RH,
    a_RF,
    seed,
    dropped_levels,
    scale,
    expert_offsets,
    tile_expert_M,
    tile_row_M,
    tile_count,
    column_tiles,
    experts,
    D,
    F,
    stride_xt,
    stride_xd,
    stride_we,
    stride_wd,
    stride_wh,
    stride_be,
    stride_bh,
    ACT: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    EVEN_K: tl.constexpr,
    EVEN_N: tl.constexpr,
    LOAD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Persistent, grid (programs). A piece of work is a row tile and BLOCK_N columns of a.

    It has two accumulators: with GATED for BLOCK_N columns of each half of h, otherwise for
    the left and the right half of its columns, so that the epilogue takes one after the other.
    """
    H = 2 * F if GATED else F
    COLUMNS: tl.constexpr = BLOCK_N if GATED else BLOCK_N // 2
    source = weight_source(
        wi_EDH, experts, D, H, stride_we, stride_wd, stride_wh, BLOCK_K, COLUMNS, LOAD
    )
    row_tiles = tl.load(tile_count)
    for work in tl.range(tl.program_id(0), row_tiles * column_tiles, tl.num_programs(0)):
        row_block, column_block = locate(work, row_tiles, column_tiles, GROUP_M)
        expert = tl.load(tile_expert_M + row_block)
        row = tl.load(tile_row_M + row_block) + tl.arange(0, BLOCK_M)
        row_inside = row < tl.load(expert_offsets + expert + 1)
        token = tl.load(row_token_R + row, mask=row_inside, other=0)
        x_rows = x_TD + token.to(tl.int64) * stride_xt
        first_n = column_block * BLOCK_N
        bias = None
        if bi_EH is not None:
            bias = bi_EH + expert.to(tl.int64) * stride_be
        second_n = F + first_n if GATED else first_n + COLUMNS
        # An accumulator each: two products into one have been miscompiled on Blackwell.
        first = tl.zeros((BLOCK_M, COLUMNS), dtype=tl.float32)
        second = tl.zeros((BLOCK_M, COLUMNS), dtype=tl.float32)
        for k in range(0, D, BLOCK_K):
            x = row_tile(x_rows, k, D, stride_xd, BLOCK_K, EVEN_K)
            if LOAD == "descriptor":
                w_first = tl.reshape(source.load([expert, k, first_n]), (BLOCK_K, COLUMNS))
                w_second = tl.reshape(source.load([expert, k, second_n]), (BLOCK_K, COLUMNS))
            else:
                w_first = weight_tile(
                    wi_EDH, expert, k, first_n, D, F, stride_we, stride_wd, stride_wh,
                    BLOCK_K, COLUMNS, EVEN_K, EVEN_N,
                )  # fmt: skip
                w_second = weight_tile(
                    wi_EDH, expert, k, second_n, D, H, stride_we, stride_wd, stride_wh,
                    BLOCK_K, COLUMNS, EVEN_K, EVEN_N,
                )  # fmt: skip
            first = tl.dot(x, w_first.to(x.dtype), first, input_precision=PRECISION)
            second = tl.dot(x, w_second.to(x.dtype), second, input_precision=PRECISION)
        if not GATED:
            _finish(
                first, None, bias, row, row_inside, first_n, h_RH, a_RF,
                seed, dropped_levels, scale, F, stride_bh, ACT, BLOCK_M, COLUMNS,
            )  # fmt: skip
            _finish(
                second, None, bias, row, row_inside, second_n, h_RH, a_RF,
                seed, dropped_levels, scale, F, stride_bh, ACT, BLOCK_M, COLUMNS,
            )  # fmt: skip
        else:
            gate, gate_right = halves(first, BLOCK_M, COLUMNS)
            linear, linear_right = halves(second, BLOCK_M, COLUMNS)
            _finish(
                gate, linear, bias, row, row_inside, first_n, h_RH, a_RF,
                seed, dropped_levels, scale, F, stride_bh, ACT, BLOCK_M, COLUMNS // 2,
            )  # fmt: skip
            _finish(
                gate_right, linear_right, bias, row, row_inside, first_n + COLUMNS // 2,
                h_RH, a_RF, seed, dropped_levels, scale, F, stride_bh, ACT, BLOCK_M, COLUMNS // 2,
            )  # fmt: skip


@triton.jit
def _finish(
    gate,
    linear,
    bias,
    row,
    row_inside,
    first_n,
    h_RH,
    a_RF,
    seed,
    dropped_levels,
    scale,
    F,
    stride_bh,
    ACT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Bias, activation and dropout of BLOCK_N columns, and their stores.

    ``gate`` is what the activation is applied to, ``linear`` its factor or None;
    ``bias`` points to the expert's, or is None.
    """
    H = F if linear is None else 2 * F
    n = first_n + tl.arange(0, BLOCK_N)
    n_inside = n < F
    inside = row_inside[:, None] & n_inside[None, :]
    row = row.to(tl.int64)
    if bias is not None:
        at = bias + n.to(tl.int64) * stride_bh
        gate += tl.load(at, mask=n_inside, other=0.0).to(tl.float32)[None, :]
        if linear is not None:
            at = bias + (F + n).to(tl.int64) * stride_bh
            linear += tl.load(at, mask=n_inside, other=0.0).to(tl.float32)[None, :]
    if h_RH is not None:
        h_out = h_RH + row[:, None] * H + n[None, :]
        tl.store(h_out, gate.to(h_RH.dtype.element_ty), mask=inside)
        if linear is not None:
            tl.store(h_out + F, linear.to(h_RH.dtype.element_ty), mask=inside)
    a = activate(gate, ACT)
    if linear is not None:
        a *= linear
    if seed is not None:
        a *= dropout_tile(tl.load(seed), row, first_n, F, dropped_levels, scale, BLOCK_M, BLOCK_N)
    a_out = a_RF + row[:, None] * F + n[None, :]
    tl.store(a_out, a.to(a_RF.dtype.element_ty), mask=inside)
