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
from flan_moe.experts.dropout import DropoutSeed, dropout_scale
from flan_moe.experts.weights import ExpertWeights
from flan_moe.routing import Routing


def reference_ffn(
    x_TD: Tensor,
    routing: Routing,
    weights: ExpertWeights,
    activation: Activation,
    dropout: DropoutSeed | None,
) -> Tensor:
    """``y_t = sum over the rows r of token t of weight_r * FFN_e(r)(x_t)``.

    ``FFN_e(x) = dropout(act(x @ wi_e)) @ wo_e``. Summed in float32 (float64 for float64 input),
    returned in the dtype of ``x_TD``. Synchronises with the device.
    """
    offsets = routing.expert_offsets.tolist()
    sum_dtype = torch.promote_types(x_TD.dtype, torch.float32)
    y_TD = torch.zeros(x_TD.shape, dtype=sum_dtype, device=x_TD.device)
    if dropout is not None:
        d_ff = weights.wo_EFD.shape[1]
        scale_RF = dropout_scale(dropout, offsets[-1], d_ff, device=x_TD.device)
    for expert, (start, end) in enumerate(pairwise(offsets)):
        token_r = routing.row_token_R[start:end].long()
        a_rF = activation.forward(x_TD[token_r] @ weights.wi_EDH[expert])
        if dropout is not None:
            a_rF = (a_rF * scale_RF[start:end]).to(a_rF.dtype)
        y_rD = (a_rF @ weights.wo_EFD[expert]).to(sum_dtype)
        y_TD = y_TD.index_add(0, token_r, y_rD * routing.row_weight_R[start:end, None])
    return y_TD.to(x_TD.dtype)
