"""The specification of the experts, in plain differentiable torch.

Runs in any floating dtype, float64 included, and supports double backward. Slow: it is what the
other backends are compared with.

Shape suffixes: T tokens, R rows, E experts, D model width, F hidden width, H pre-activation width.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from flan_moe.experts.activations import Activation
from flan_moe.experts.dropout import Dropout, dropout_scale
from flan_moe.experts.weights import ExpertWeights
from flan_moe.routing import Routing


def reference_ffn(
    x_TD: Tensor,
    routing: Routing,
    weights: ExpertWeights,
    activation: Activation,
    dropout: Dropout | None,
    matmul_dtype: torch.dtype,
) -> Tensor:
    """``y_t = sum over the rows r of token t of weight_r * FFN_e(r)(x_t)``.

    ``FFN_e(x) = dropout(act(x @ wi_e + bi_e)) @ wo_e + bo_e``. Summed in float32 (float64 for
    float64 input), returned in the dtype of ``x_TD``; what is multiplied has ``matmul_dtype``.
    Synchronises with the device.
    """
    wi_EDH, wo_EFD, bi_EH, bo_ED = weights
    offsets = routing.expert_offsets.tolist()
    sum_dtype = torch.promote_types(x_TD.dtype, torch.float32)
    y_TD = torch.zeros(x_TD.shape, dtype=sum_dtype, device=x_TD.device)
    for expert, (start, end) in enumerate(pairwise(offsets)):
        token_r = routing.row_token_R[start:end].long()
        h_rH = x_TD[token_r].to(matmul_dtype) @ wi_EDH[expert].to(matmul_dtype)
        if bi_EH is not None:
            h_rH = h_rH + bi_EH[expert]
        a_rF = activation.forward(h_rH)
        if dropout is not None:
            a_rF = (a_rF * dropout_scale(dropout, *a_rF.shape, first_row=start)).to(a_rF.dtype)
        y_rD = (a_rF.to(matmul_dtype) @ wo_EFD[expert].to(matmul_dtype)).to(sum_dtype)
        if bo_ED is not None:
            y_rD = y_rD + bo_ED[expert]
        weighted_rD = (y_rD * routing.row_weight_R[start:end, None]).to(sum_dtype)
        y_TD = y_TD.index_add(0, token_r, weighted_rD)
    return y_TD.to(x_TD.dtype)
