"""The hidden activation again, from what was kept of it, and the way back through it.

Shape suffixes: c rows of a chunk, F hidden width, H pre-activation width, N any width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flan_moe.experts.backend import Options
from flan_moe.experts.dropout import dropout_scale


def hidden(
    kept: Tensor, first_row: int, options: Options
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The hidden a_cF after dropout, and the map from its gradient to that of h_cH."""
    act, dropout = options.activation, options.dropout
    if act.keeps_output:  # what was dropped is zero and has a gradient of zero: no mask needed
        scale = dropout.scale if dropout is not None else 1.0
        out_cF = kept if scale in (0.0, 1.0) else kept / scale
        return kept, lambda da_cF: act.act.gradient(da_cF.mul_(scale), out_cF)
    a_cF, pullback = act.vjp(kept)
    if dropout is None:
        return a_cF, pullback
    scale_cF = dropout_scale(dropout, *a_cF.shape, first_row=first_row)
    # In place: scale_cF is float32, and a product of its own would be, too.
    return a_cF.mul_(scale_cF), lambda da_cF: pullback(da_cF.mul_(scale_cF))


def dot(left_rN: Tensor, right: Tensor) -> Tensor:
    """The product of each row with another, or with a vector, summed in float32 or wider."""
    dtype = torch.promote_types(left_rN.dtype, torch.float32)
    return torch.linalg.vecdot(left_rN.to(dtype), right.to(dtype))
