"""What a dense layer of equal FLOPs takes: R rows through one expert's weights, no routing.

Shape suffixes: R rows, D model width, F hidden width, H = 2F for gated activations, else F.
"""

from __future__ import annotations

import torch
from torch import Tensor

from measure import Passes
from peers.case import Case, Problem


def _rows(case: Case, problem: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_RD, wi_DH, wo_FD and dy_RD."""
    x_TD, _, _, weights, dy_TD = problem
    copies = (case.top_k, 1)
    return x_TD.repeat(copies), weights.wi_EDH[0], weights.wo_EFD[0], dy_TD.repeat(copies)


def matmuls(case: Case, problem: Problem) -> Passes:
    """The two and the four bare matrix products, into buffers made before: cuBLAS's rate."""
    x_RD, wi_DH, wo_FD, dy_RD = _rows(case, problem)
    rows = x_RD.shape[0]
    h_RH, a_RF, da_RF = (x_RD.new_empty(rows, n) for n in (case.h_width, case.d_ff, case.d_ff))
    y_RD, dx_RD = torch.empty_like(x_RD), torch.empty_like(x_RD)
    dwi_DH, dwo_FD = torch.empty_like(wi_DH), torch.empty_like(wo_FD)
    a_RF.normal_()

    def forward() -> Tensor:
        torch.mm(x_RD, wi_DH, out=h_RH)
        return torch.mm(a_RF, wo_FD, out=y_RD)

    def backward(_: Tensor) -> None:
        torch.mm(dy_RD, wo_FD.T, out=da_RF)
        torch.mm(a_RF.T, dy_RD, out=dwo_FD)
        torch.mm(h_RH, wi_DH.T, out=dx_RD)
        torch.mm(x_RD.T, h_RH, out=dwi_DH)

    return Passes(forward, backward)


def dense_layer(case: Case, problem: Problem) -> Passes:
    """The feed-forward layer that people write, under autograd."""
    x_RD, wi_DH, wo_FD, dy_RD = _rows(case, problem)
    leaves = tuple(tensor.clone().requires_grad_() for tensor in (x_RD, wi_DH, wo_FD))

    def forward() -> Tensor:
        x_RD, wi_DH, wo_FD = leaves
        return case.activate(x_RD @ wi_DH) @ wo_FD

    def backward(y_RD: Tensor) -> None:
        torch.autograd.grad(y_RD, leaves, dy_RD)

    return Passes(forward, backward)
