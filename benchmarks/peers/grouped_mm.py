"""A plain layer on `torch.nn.functional.grouped_mm`: sort, gather, two grouped products, sum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from flan_moe.experts import ExpertWeights
from peers.case import Case
from peers.side import Side

ALIGNMENT = 16


@dataclass(frozen=True)
class GroupedMM:
    """What a user of recent torch writes without a kernel package."""

    name: str = "grouped_mm"

    def available(self) -> str | None:
        """See `Peer.available`."""
        if not hasattr(F, "grouped_mm"):
            return f"torch {torch.__version__} has no torch.nn.functional.grouped_mm"
        return None

    def supports(self, case: Case) -> str | None:
        """See `Peer.supports`."""
        for name, width in (("d_model", case.d_model), ("d_ff", case.d_ff)):
            if width * 2 % ALIGNMENT:
                return f"needs rows of a multiple of {ALIGNMENT} bytes, not {name}={width}"
        return None

    def version(self) -> str:
        """See `Peer.version`."""
        return torch.__version__

    def build(self, case: Case, weights: ExpertWeights) -> Side:
        """See `Peer.build`."""
        wi_EDH = weights.wi_EDH.clone().requires_grad_()
        wo_EFD = weights.wo_EFD.clone().requires_grad_()

        def forward(x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor) -> Tensor:
            order_R = expert_TK.flatten().argsort(stable=True)
            counts_E = expert_TK.new_zeros(case.num_experts)
            counts_E.scatter_add_(0, expert_TK.flatten(), torch.ones_like(order_R))
            ends_E = counts_E.cumsum(0).to(torch.int32)
            x_RD = x_TD.index_select(0, order_R // case.top_k)
            a_RF = case.activate(F.grouped_mm(x_RD, wi_EDH, offs=ends_E))
            y_RD = F.grouped_mm(a_RF, wo_EFD, offs=ends_E)
            place_N = torch.empty_like(order_R)
            place_N[order_R] = torch.arange(order_R.shape[0], device=order_R.device)
            y_TKD = y_RD.index_select(0, place_N).unflatten(0, (-1, case.top_k))
            return (y_TKD.float() * weight_TK[..., None]).sum(dim=1).to(x_TD.dtype)

        return Side(forward=forward, parameters=(wi_EDH, wo_EFD), to_our_layout=tuple)
