"""Experts as one autograd function over expert-sorted rows, for CPU and any GPU.

Rows of one expert are contiguous, so that each expert is one matrix product on a slice, written
straight into a preallocated buffer. Between forward and backward only the tokens x_TD and the
pre-activation h_RH (for ReLU its output a_RF, which is narrower or equal) are kept, plus the
routing's index vectors: the hidden activation is computed again from h, the gathered tokens are
gathered again, the dropout mask is drawn again from its seed, and the expert outputs are not
needed, because the gradient of a row's weight is <dO, a W_o> = <dO W_o^T, a> (SonicMoE, Guo et
al. 2025, section 3). Experts without rows are not touched, except that their weight gradients are
set to zero.

Shape suffixes: T tokens, R rows, E experts, D model width, F hidden width, H pre-activation
width; lower-case r: the rows of one expert.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from flan_moe.experts.activations import Activation
from flan_moe.experts.dropout import DropoutSeed, dropout_scale
from flan_moe.experts.weights import ExpertWeights
from flan_moe.routing import Routing


def grouped_ffn(
    x_TD: Tensor,
    routing: Routing,
    weights: ExpertWeights,
    activation: Activation,
    dropout: DropoutSeed | None,
) -> Tensor:
    """The experts, equal to `reference_ffn` up to rounding; deterministic, forward and backward.

    Under autocast the matrix products run in the autocast dtype, and only the weights of experts
    that have rows are cast. Rows are summed in float32 (float64 for float64 input); the result
    has the dtype of ``x_TD``. Reads the expert offsets on the host: no cost on CPU, one wait for
    the device on a GPU. Differentiable once.
    """
    device_type = x_TD.device.type
    matmul_dtype = x_TD.dtype
    if torch.is_autocast_enabled(device_type) and x_TD.dtype != torch.float64:
        matmul_dtype = torch.get_autocast_dtype(device_type)
    return _GroupedFFN.apply(
        x_TD, *weights, routing.row_weight_R, routing, activation, dropout, matmul_dtype
    )


class _GroupedFFN(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        wi_EDH: Tensor,
        wo_EFD: Tensor,
        row_weight_R: Tensor,
        routing: Routing,
        activation: Activation,
        dropout: DropoutSeed | None,
        matmul_dtype: torch.dtype,
    ) -> Tensor:
        offsets = routing.expert_offsets.tolist()
        rows = offsets[-1]
        row_token_R = routing.row_token_R[:rows]
        token_row_R = routing.token_row_R[:rows]
        wants_x, wants_wi, wants_wo, wants_weight = ctx.needs_input_grad[:4]

        x_cast_TD = x_TD.to(matmul_dtype)
        x_RD = x_cast_TD.index_select(0, row_token_R)
        h_RH = _times_weights(x_RD, wi_EDH, offsets)
        del x_RD
        a_RF = activation.forward_(h_RH)
        kept = a_RF if activation.keeps_output else h_RH
        if dropout is not None:
            scale_RF = dropout_scale(dropout, *a_RF.shape, device=a_RF.device)
            a_RF = torch.mul(a_RF, scale_RF, out=torch.empty_like(a_RF) if a_RF is kept else a_RF)
            del scale_RF
        y_RD = _times_weights(a_RF, wo_EFD, offsets)

        ctx.save_for_backward(
            x_cast_TD if wants_wi else None,
            kept if wants_x or wants_wi or wants_wo or wants_weight else None,
            wi_EDH if wants_x else None,
            wo_EFD if wants_x or wants_wi or wants_weight else None,
            row_weight_R,
            row_token_R,
            token_row_R,
            routing.token_offsets,
        )
        ctx.offsets = offsets
        ctx.activation = activation
        ctx.dropout = dropout
        ctx.matmul_dtype = matmul_dtype
        ctx.weight_dtypes = (wi_EDH.dtype, wo_EFD.dtype)
        return _sum_rows(y_RD, row_weight_R[:rows], token_row_R, routing.token_offsets, x_TD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TD: Tensor) -> tuple[Tensor | None, ...]:
        (
            x_TD,
            kept,
            wi_EDH,
            wo_EFD,
            row_weight_R,
            row_token_R,
            token_row_R,
            token_offsets,
        ) = ctx.saved_tensors
        wants_x, wants_wi, wants_wo, wants_weight = ctx.needs_input_grad[:4]
        wi_dtype, wo_dtype = ctx.weight_dtypes
        offsets, activation, dropout = ctx.offsets, ctx.activation, ctx.dropout
        rows = offsets[-1]
        weight_R1 = row_weight_R[:rows, None]
        dx_TD = dwi_EDH = dwo_EFD = drow_weight_R = None

        dy_RD = dy_TD.to(ctx.matmul_dtype).index_select(0, row_token_R)
        if wants_x or wants_wi or wants_weight:
            # Without the row's weight yet: as such it is what the weight's own gradient needs.
            da_RF = _times_weights(dy_RD, wo_EFD.mT, offsets)
        a_RF, pullback = activation.vjp(kept)
        if dropout is not None:
            scale_RF = dropout_scale(dropout, *a_RF.shape, device=a_RF.device)
            a_RF = torch.mul(a_RF, scale_RF, out=torch.empty_like(a_RF) if a_RF is kept else a_RF)
        product_RF = torch.empty_like(a_RF)
        if wants_weight:
            torch.mul(da_RF, a_RF, out=product_RF)
            drow_weight_R = row_weight_R.new_zeros(row_weight_R.shape)
            torch.sum(product_RF, dim=-1, dtype=row_weight_R.dtype, out=drow_weight_R[:rows])
        if wants_wo:
            torch.mul(a_RF, weight_R1, out=product_RF)
            dwo_EFD = _weight_gradient(product_RF, dy_RD, offsets, wo_dtype)
        if wants_x or wants_wi:
            da_RF.mul_(weight_R1)
            if dropout is not None:
                da_RF.mul_(scale_RF)
            dh_RH = pullback(da_RF)
        if wants_wi:
            x_RD = x_TD.index_select(0, row_token_R)
            dwi_EDH = _weight_gradient(x_RD, dh_RH, offsets, wi_dtype)
        if wants_x:
            dx_RD = _times_weights(dh_RH, wi_EDH.mT, offsets)
            dx_TD = _sum_rows(dx_RD, None, token_row_R, token_offsets, dy_TD.dtype)
        return dx_TD, dwi_EDH, dwo_EFD, drow_weight_R, None, None, None, None


def _times_weights(left_RM: Tensor, weight_EMN: Tensor, offsets: list[int]) -> Tensor:
    """Each expert's rows times its weight, (R, N), in the dtype of the rows.

    Only weights of experts that have rows are read (and cast, under autocast).
    """
    product_RN = left_RM.new_empty(left_RM.shape[0], weight_EMN.shape[2])
    for expert, (start, end) in enumerate(pairwise(offsets)):
        if end > start:
            weight_MN = weight_EMN[expert].to(left_RM.dtype)
            torch.mm(left_RM[start:end], weight_MN, out=product_RN[start:end])
    return product_RN


def _weight_gradient(
    left_RM: Tensor, right_RN: Tensor, offsets: list[int], dtype: torch.dtype
) -> Tensor:
    """``left_r^T @ right_r`` of each expert's rows, (E, M, N): zeros for experts without rows."""
    shape = (len(offsets) - 1, left_RM.shape[1], right_RN.shape[1])
    gradient_EMN = left_RM.new_empty(shape, dtype=dtype)
    for expert, (start, end) in enumerate(pairwise(offsets)):
        left_Mr, right_rN = left_RM[start:end].T, right_RN[start:end]
        if end == start:
            gradient_EMN[expert].zero_()
        elif dtype == left_RM.dtype:
            torch.mm(left_Mr, right_rN, out=gradient_EMN[expert])
        else:  # autocast: torch.mm cannot write into a wider dtype
            gradient_EMN[expert] = left_Mr @ right_rN
    return gradient_EMN


def _sum_rows(
    value_RD: Tensor,
    weight_R: Tensor | None,
    token_row_R: Tensor,
    token_offsets: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Sum each token's rows, optionally weighted: a gather and a sum in a fixed order, no atomics.

    Summed in float32, or float64 for float64 values. A token without rows gets exactly zero.
    """
    sum_dtype = torch.promote_types(value_RD.dtype, torch.float32)
    if value_RD.shape[0] == 0:
        tokens = token_offsets.shape[0] - 1
        return value_RD.new_zeros((tokens, value_RD.shape[1]), dtype=dtype)
    if weight_R is not None:
        weight_R = weight_R.to(sum_dtype).index_select(0, token_row_R)
    return F.embedding_bag(
        token_row_R,
        value_RD.to(sum_dtype),
        token_offsets,
        mode="sum",
        per_sample_weights=weight_R,
        include_last_offset=True,
    ).to(dtype)
