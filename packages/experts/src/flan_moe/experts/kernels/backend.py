"""The backend "triton": `flan_moe.experts.backend.Backend` as a sequence of kernels.

Forward: up (gather, product, activation, dropout), down, combine. Backward: dhidden, then from its
results the weight gradients, the rows of dX and their sum per token. What lives in between is x
and one (R, H) or (R, F) tensor. Nothing waits for the device, nothing is added atomically, and
weights are read where they lie, whatever their strides and dtype; under autocast x and dy are
cast once, as a whole.

Importing this module imports triton.

Shape suffixes: T tokens, R rows, E experts, D model width, F hidden width, H pre-activation width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flan_moe.experts.backend import Gradients, MainGrads, Options, RowIndex, Wanted
from flan_moe.experts.kernels.combine import combine
from flan_moe.experts.kernels.config import KernelConfigs
from flan_moe.experts.kernels.dbias import dbias
from flan_moe.experts.kernels.dhidden import dhidden
from flan_moe.experts.kernels.drow_weight import drow_weight
from flan_moe.experts.kernels.dweight import dweight
from flan_moe.experts.kernels.rows_matmul import rows_matmul
from flan_moe.experts.kernels.schedule import TileTable, compiled, tile_table
from flan_moe.experts.kernels.table import choose_configs
from flan_moe.experts.kernels.up import up
from flan_moe.experts.weights import ExpertWeights


def forward(
    x_TD: Tensor,
    weights: ExpertWeights,
    row_weight_R: Tensor,
    index: RowIndex,
    options: Options,
    *,
    keep: bool,
    configs: KernelConfigs | None = None,
) -> tuple[Tensor, Tensor | None]:
    """As `Backend.forward`.

    Args:
        x_TD: see there, as for all but ``configs``.
        weights: the same.
        row_weight_R: the same.
        index: the same.
        options: the same.
        keep: the same.
        configs: tile sizes; None for those of the table.

    Raises:
        ValueError: for float64, another dtype that the kernels lack, or tensors that are not on
            a CUDA device.
    """
    _check(x_TD, weights, row_weight_R, options)
    rows = index.row_token_R.shape[0]
    keeps_output = options.activation.keeps_output
    if rows == 0:
        width = weights.wo_EFD.shape[1] if keeps_output else weights.wi_EDH.shape[2]
        kept = x_TD.new_empty(rows, width, dtype=options.matmul_dtype) if keep else None
        return x_TD.new_zeros(x_TD.shape), kept
    configs = configs or _configs(weights, rows, options)
    with torch.cuda.device_of(x_TD):  # triton launches on the current device
        tiles = _tables(index, rows, configs.up.block_m, configs.down.block_m)
        a_RF, h_RH = up(
            x_TD.to(options.matmul_dtype),
            index.row_token_R,
            weights.wi_EDH,
            weights.bi_EH,
            index.expert_offsets,
            tiles[configs.up.block_m],
            options.activation,
            options.dropout,
            keep=keep and not keeps_output,
            config=configs.up,
        )
        y_RD = rows_matmul(
            a_RF,
            weights.wo_EFD,
            weights.bo_ED,
            index.expert_offsets,
            tiles[configs.down.block_m],
            config=configs.down,
        )
        y_TD = combine(y_RD, row_weight_R, index.token_offsets, index.token_row_R, x_TD.dtype)
    if not keep:
        return y_TD, None
    return y_TD, a_RF if keeps_output else h_RH


def backward(
    dy_TD: Tensor,
    x_TD: Tensor | None,
    kept: Tensor,
    weights: ExpertWeights,
    row_weight_R: Tensor,
    index: RowIndex,
    options: Options,
    wanted: Wanted,
    main_grads: MainGrads,
    *,
    configs: KernelConfigs | None = None,
) -> Gradients:
    """As `Backend.backward`.

    Args:
        dy_TD: see there, as for all but ``configs``.
        x_TD: the same.
        kept: the same; contiguous, as `forward` gives it.
        weights: the same.
        row_weight_R: the same.
        index: the same.
        options: the same.
        wanted: the same.
        main_grads: the same.
        configs: tile sizes; None for those of the table.

    Raises:
        ValueError: as `forward`.
    """
    _check(dy_TD, weights, row_weight_R, options)
    rows = index.row_token_R.shape[0]
    if rows == 0:
        return _no_gradients(dy_TD, weights, row_weight_R, wanted, main_grads)
    configs = configs or _configs(weights, rows, options)
    dy = dy_TD.to(options.matmul_dtype)
    offsets, row_token_R = index.expert_offsets, index.row_token_R
    with torch.cuda.device_of(dy_TD):
        dx = dwi = dwo = dbi = dbo = drow = None
        if wanted.bo:
            dbo = dbias(dy, row_token_R, row_weight_R, offsets, weights.bo_ED.dtype)
        if any((wanted.x, wanted.wi, wanted.bi, wanted.wo, wanted.row_weight)):
            tiles = _tables(index, rows, configs.dhidden.block_m, configs.dx.block_m)
            dh_RH, weighted_RF, partial_CR = dhidden(
                dy,
                row_token_R,
                row_weight_R,
                weights.wo_EFD,
                kept,
                offsets,
                tiles[configs.dhidden.block_m],
                options.activation,
                options.dropout,
                want_dh=wanted.x or wanted.wi or wanted.bi,
                want_weighted=wanted.wo,
                want_partial=wanted.row_weight,
                config=configs.dhidden,
            )
        if wanted.row_weight:
            drow = drow_weight(
                partial_CR,
                dy,
                row_token_R,
                weights.bo_ED,
                offsets,
                tiles[configs.dhidden.block_m],
            )
        if wanted.wo:
            dwo = _weight_gradient(weights.wo_EFD, main_grads.wo_EFD)
            dweight(
                weighted_RF,
                dy,
                row_token_R,
                offsets,
                gather_left=False,
                out_EMN=dwo,
                accumulate=main_grads.wo_EFD is not None and main_grads.accumulate,
                config=configs.dwo,
            )
            del weighted_RF
        if wanted.wi:
            dwi = _weight_gradient(weights.wi_EDH, main_grads.wi_EDH)
            dweight(
                x_TD.to(options.matmul_dtype),
                dh_RH,
                row_token_R,
                offsets,
                gather_left=True,
                out_EMN=dwi,
                accumulate=main_grads.wi_EDH is not None and main_grads.accumulate,
                config=configs.dwi,
            )
        if wanted.bi:
            dbi = dbias(dh_RH, None, None, offsets, weights.bi_EH.dtype)
        if wanted.x:
            dx_RD = rows_matmul(
                dh_RH,
                weights.wi_EDH.transpose(1, 2),
                None,
                offsets,
                tiles[configs.dx.block_m],
                config=configs.dx,
            )
            dx = combine(dx_RD, None, index.token_offsets, index.token_row_R, dy_TD.dtype)
    return Gradients(
        dx,
        dwi if main_grads.wi_EDH is None else None,
        dwo if main_grads.wo_EFD is None else None,
        dbi,
        dbo,
        drow,
    )


def _tables(index: RowIndex, rows: int, *block_ms: int) -> dict[int, TileTable]:
    return {block_m: tile_table(index.expert_offsets, rows, block_m) for block_m in set(block_ms)}


def _weight_gradient(weight: Tensor, main_grad: Tensor | None) -> Tensor:
    """Where a weight's gradient goes: memory that a kernel writes in full, or adds to."""
    return weight.new_empty(weight.shape) if main_grad is None else main_grad


def _no_gradients(
    dy_TD: Tensor,
    weights: ExpertWeights,
    row_weight_R: Tensor,
    wanted: Wanted,
    main_grads: MainGrads,
) -> Gradients:
    """The gradients where there are no rows."""
    inputs = (dy_TD, weights.wi_EDH, weights.wo_EFD, weights.bi_EH, weights.bo_ED, row_weight_R)
    gradients = Gradients(
        *(x.new_zeros(x.shape) if want else None for x, want in zip(inputs, wanted, strict=True))
    )
    for name in ("wi_EDH", "wo_EFD"):
        main_grad = getattr(main_grads, name)
        if main_grad is not None and getattr(gradients, name) is not None:
            gradients = gradients._replace(**{name: None})
            if not main_grads.accumulate:
                main_grad.zero_()
    return gradients


def _configs(weights: ExpertWeights, rows: int, options: Options) -> KernelConfigs:
    experts, hidden, width = weights.wo_EFD.shape
    device = weights.wo_EFD.device
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    return choose_configs(
        capability=10 * capability[0] + capability[1],
        dtype=options.matmul_dtype,
        weight_dtype=weights.wi_EDH.dtype,
        width=width,
        hidden=hidden,
        experts=experts,
        rows=rows,
        gated=options.activation.gated,
    )


_MATMUL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _check(x_TD: Tensor, weights: ExpertWeights, row_weight_R: Tensor, options: Options) -> None:
    dtypes = {tensor.dtype for tensor in (x_TD, row_weight_R, *weights) if tensor is not None}
    if torch.float64 in dtypes or options.matmul_dtype == torch.float64:
        raise ValueError("backend 'triton' has no float64; use 'grouped' or 'reference'")
    unknown = (dtypes | {options.matmul_dtype}) - set(_MATMUL_DTYPES)
    if unknown:
        raise ValueError(
            f"backend 'triton' has no {', '.join(map(str, unknown))}: expected one of "
            f"{', '.join(map(str, _MATMUL_DTYPES))}"
        )
    if x_TD.device.type != "cuda" and compiled():
        raise ValueError(
            f"backend 'triton' needs tensors on a CUDA device, not on {x_TD.device}; use 'grouped'"
        )
