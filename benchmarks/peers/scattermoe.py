"""ScatterMoE: its `parallel_linear` twice, with the activation in torch, as its own MLP does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from flan_moe.experts import ExpertWeights
from peers.case import Case
from peers.checkout import Package
from peers.side import Side, transposed


@dataclass(frozen=True)
class ScatterMoE:
    """Shawn Tan et al., github.com/shawntan/scattermoe; ``folder``: its check-out."""

    folder: Path | None = None
    name: str = "scattermoe"

    @property
    def _package(self) -> Package:
        return Package(module="scattermoe", distribution="scattermoe", folder=self.folder)

    def available(self) -> str | None:
        """See `Peer.available`."""
        return self._package.problem()

    def supports(self, case: Case) -> str | None:
        """See `Peer.supports`."""
        return None

    def version(self) -> str:
        """See `Peer.version`."""
        return self._package.version()

    def build(self, case: Case, weights: ExpertWeights) -> Side:
        """See `Peer.build`. Its weights are (E, out, in), read through a transposed view."""
        from scattermoe import flatten_sort_count, parallel_linear

        wi_EHD = weights.wi_EDH.mT.contiguous().requires_grad_()
        wo_EDF = weights.wo_EFD.mT.contiguous().requires_grad_()

        def forward(x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor) -> Tensor:
            order = flatten_sort_count(expert_TK, num_experts=case.num_experts)
            h_RH = parallel_linear(x_TD, wi_EHD.mT, case.top_k, *order, grouped_out=True)
            a_RF = case.activate(h_RH)
            gates_TK = weight_TK.to(x_TD.dtype)
            return parallel_linear(a_RF, wo_EDF.mT, 1, *order, grouped_in=True, gates=gates_TK)

        return Side(forward=forward, parameters=(wi_EHD, wo_EDF), to_our_layout=transposed)
