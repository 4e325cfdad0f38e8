"""Liger-Kernel's fused MoE in Triton: SwiGLU only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flan_moe.experts import ExpertWeights
from peers.case import Case
from peers.checkout import Package
from peers.side import Side, transposed


@dataclass(frozen=True)
class Liger:
    """LinkedIn, github.com/linkedin/Liger-Kernel; ``folder``: its check-out."""

    folder: Path | None = None
    name: str = "liger"

    @property
    def _package(self) -> Package:
        return Package(
            module="liger_kernel.ops.fused_moe",
            distribution="liger-kernel",
            folder=self.folder,
            source="src",
            bare=("liger_kernel.ops",),  # imports every kernel; one needs triton 3.4
        )

    def available(self) -> str | None:
        """See `Peer.available`."""
        return self._package.problem()

    def supports(self, case: Case) -> str | None:
        """See `Peer.supports`."""
        return None if case.activation == "swiglu" else f"has SwiGLU only, not {case.activation}"

    def version(self) -> str:
        """See `Peer.version`."""
        return self._package.version()

    def build(self, case: Case, weights: ExpertWeights) -> Side:
        """See `Peer.build`. Its weights are (E, out, in), contiguous."""
        from liger_kernel.ops.fused_moe import LigerFusedMoEFunction

        wi_EHD = weights.wi_EDH.mT.contiguous().requires_grad_()
        wo_EDF = weights.wo_EFD.mT.contiguous().requires_grad_()

        def forward(x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor) -> Tensor:
            return LigerFusedMoEFunction.apply(
                x_TD, wi_EHD, wo_EDF, expert_TK.to(torch.int32), weight_TK
            )

        return Side(forward=forward, parameters=(wi_EHD, wo_EDF), to_our_layout=transposed)
