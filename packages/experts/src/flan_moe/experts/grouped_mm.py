"""The grouped backend's products by `torch.nn.functional.grouped_mm`, without the host.

Where torch has it and its rules allow, one call does the product of all experts, and nothing is
read on the host. What it does not do is looked after here: it leaves the rows past the last offset
uninitialised, so they are never used; it takes int32 offsets, one dtype, and strides that are
multiples of 16 bytes; it has no autocast rule.

Shape suffixes: T tokens, R rows (the bound that the host knows), E experts, D model width, F
hidden width, H pre-activation width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from flan_moe.experts.backend import Gradients, MainGrads, Options, RowIndex, Wanted
from flan_moe.experts.combine import sum_rows
from flan_moe.experts.dropout import dropout_scale
from flan_moe.experts.hidden import dot, hidden
from flan_moe.experts.weights import ExpertWeights

_ALIGNMENT = 16
_ROWS_BEYOND = 64


def is_available() -> bool:
    """Whether this torch has the function under its public name."""
    return hasattr(F, "grouped_mm")


def fits(weights: ExpertWeights, dtype: torch.dtype) -> bool:
    """Whether these weights can be its operands, in the dtype of the products, as they are."""
    if dtype == torch.float64 or any(w.dtype != dtype for w in (weights.wi_EDH, weights.wo_EFD)):
        return False
    return all(
        weight.stride(-1) == 1
        and all(stride * weight.element_size() % _ALIGNMENT == 0 for stride in weight.stride()[:-1])
        and weight.shape[1] * weight.element_size() % _ALIGNMENT == 0
        for weight in (weights.wi_EDH, weights.wo_EFD)
    )


def forward(
    x_TD: Tensor,
    weights: ExpertWeights,
    row_weight_R: Tensor,
    index: RowIndex,
    options: Options,
    *,
    keep: bool,
) -> tuple[Tensor, Tensor | None]:
    """See `backend.Backend.forward`."""
    act, ends_E = options.activation, index.expert_offsets[1:]
    safe = _safe(index)
    x_RD = x_TD.to(options.matmul_dtype).index_select(0, safe.row_token_R)
    h_RH = _plus_bias(F.grouped_mm(x_RD, weights.wi_EDH, offs=ends_E), weights.bi_EH, index)
    a_RF = act.forward(h_RH)
    if options.dropout is not None:
        a_RF = (a_RF * dropout_scale(options.dropout, *a_RF.shape)).to(a_RF.dtype)
    y_RD = _plus_bias(F.grouped_mm(a_RF, weights.wo_EFD, offs=ends_E), weights.bo_ED, index)
    y_TD = _sum_rows(y_RD, row_weight_R, safe, dtype=x_TD.dtype)
    return y_TD, (a_RF if act.keeps_output else h_RH) if keep else None


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
) -> Gradients:
    """See `backend.Backend.backward`."""
    dtype = options.matmul_dtype
    wi_EDH, wo_EFD, bi_EH, bo_ED = weights
    ends_E, safe = index.expert_offsets[1:], _safe(index)
    is_row_R = _is_row(index)
    dy_RD = dy_TD.to(dtype).index_select(0, safe.row_token_R)
    weight_R1 = torch.where(is_row_R, row_weight_R, 0.0)[:, None]
    scaled_dy_RD = (dy_RD * weight_R1).to(dtype)
    a_RF, pullback = hidden(kept, 0, options)
    dx_TD = dwi_EDH = dwo_EFD = dbi_EH = dbo_ED = drow_weight_R = None
    needs_dh = wanted.x or wanted.wi or wanted.bi
    if needs_dh or wanted.row_weight:
        da_RF = F.grouped_mm(dy_RD, wo_EFD.mT, offs=ends_E)
    if wanted.row_weight:
        drow_weight_R = dot(da_RF, a_RF)
        if bo_ED is not None:
            drow_weight_R = drow_weight_R + dot(dy_RD, bo_ED[_expert(index)])
        drow_weight_R = torch.where(is_row_R, drow_weight_R, 0.0).to(row_weight_R.dtype)
    if wanted.wo:
        dwo_EFD = _deliver(
            F.grouped_mm(a_RF.mT, scaled_dy_RD, offs=ends_E),
            main_grads.wo_EFD,
            main_grads.accumulate,
        )
    if wanted.bo:
        dbo_ED = _sum_by_expert(scaled_dy_RD, bo_ED, index)
    if needs_dh:
        dh_RH = pullback((da_RF * weight_R1).to(dtype))
        if wanted.wi:
            x_RD = x_TD.to(dtype).index_select(0, safe.row_token_R)
            dwi_EDH = _deliver(
                F.grouped_mm(x_RD.mT, dh_RH, offs=ends_E), main_grads.wi_EDH, main_grads.accumulate
            )
        if wanted.bi:
            dbi_EH = _sum_by_expert(dh_RH, bi_EH, index)
        if wanted.x:
            dx_RD = F.grouped_mm(dh_RH, wi_EDH.mT, offs=ends_E)
            dx_TD = _sum_rows(dx_RD, None, safe, dtype=dy_TD.dtype)
    return Gradients(dx_TD, dwi_EDH, dwo_EFD, dbi_EH, dbo_ED, drow_weight_R)


def _is_row(index: RowIndex) -> Tensor:
    """(R,) bool: which rows are below the true row count."""
    rows = torch.arange(index.row_token_R.shape[0], device=index.row_token_R.device)
    return rows < index.expert_offsets[-1]


def _safe(index: RowIndex) -> RowIndex:
    """The index with zeros where it is undefined, past the true row count."""
    is_row_R = _is_row(index)
    return index._replace(
        row_token_R=torch.where(is_row_R, index.row_token_R, 0),
        token_row_R=torch.where(is_row_R, index.token_row_R, 0),
    )


def _expert(index: RowIndex) -> Tensor:
    """(R,) the expert of each row; past the true row count the last one."""
    experts = index.expert_offsets.shape[0] - 1
    rows = torch.arange(index.row_token_R.shape[0], device=index.expert_offsets.device)
    return torch.bucketize(rows, index.expert_offsets[1:], right=True).clamp(max=experts - 1)


def _plus_bias(value_RN: Tensor, bias_EN: Tensor | None, index: RowIndex) -> Tensor:
    return value_RN if bias_EN is None else value_RN + bias_EN[_expert(index)]


def _sum_by_expert(value_RN: Tensor, bias_EN: Tensor, index: RowIndex) -> Tensor:
    """The gradient of a bias: its expert's rows, summed in a fixed order."""
    rows = torch.arange(value_RN.shape[0], device=value_RN.device, dtype=torch.int32)
    offsets = index.expert_offsets
    by_expert = RowIndex(rows, offsets, offsets, rows)
    return _sum_rows(value_RN, None, by_expert, dtype=bias_EN.dtype)


def _sum_rows(
    value_RN: Tensor, weight_R: Tensor | None, index: RowIndex, *, dtype: torch.dtype
) -> Tensor:
    """As `combine.sum_rows`, of values that have rows past the true row count.

    These go into sums of their own, which are cut off: torch ends the last sum at the last row,
    not at the last offset. A sum is made one row after the other, so that one for all of them
    would take long.
    """
    rows, offsets = value_RN.shape[0], index.token_offsets
    beyond = torch.arange(1, rows // _ROWS_BEYOND + 2, device=offsets.device, dtype=offsets.dtype)
    beyond = (offsets[-1] + _ROWS_BEYOND * beyond).clamp(max=rows)
    longer = index._replace(token_offsets=torch.cat([offsets, beyond]))
    return sum_rows(value_RN, weight_R, longer, dtype=dtype)[: offsets.shape[0] - 1]


def _deliver(gradient: Tensor, main_grad: Tensor | None, accumulate: bool) -> Tensor | None:
    """The gradient for autograd, or None once it is in its buffer."""
    if main_grad is None:
        return gradient
    main_grad.add_(gradient) if accumulate else main_grad.copy_(gradient)
    return None
