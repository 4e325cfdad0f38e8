"""SonicMoE's experts, for Hopper and later, from a list of (token, expert, weight)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flan_moe.experts import ExpertWeights
from peers.case import Case
from peers.checkout import Package
from peers.side import Side


@dataclass(frozen=True)
class SonicMoE:
    """Dao AI Lab, github.com/Dao-AILab/sonic-moe, where installed."""

    name: str = "sonicmoe"

    @property
    def _package(self) -> Package:
        return Package(module="sonicmoe", distribution="sonic-moe")

    def available(self) -> str | None:
        """See `Peer.available`."""
        if torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0):
            return f"needs Hopper or later, not {torch.cuda.get_device_name()}"
        return self._package.problem()

    def supports(self, case: Case) -> str | None:
        """See `Peer.supports`. Widths as its kernels tile them."""
        if case.d_model % 64 or case.d_model < 512:
            return f"needs d_model >= 512 and a multiple of 64, not {case.d_model}"
        multiple = 64 if case.gated else 128
        if case.d_ff % multiple:
            return f"needs d_ff a multiple of {multiple}, not {case.d_ff}"
        if case.num_experts % 8:
            return f"needs num_experts a multiple of 8, not {case.num_experts}"
        return None

    def version(self) -> str:
        """See `Peer.version`."""
        return self._package.version()

    def build(self, case: Case, weights: ExpertWeights) -> Side:
        """See `Peer.build`. Its up weight alternates rows of gate and linear factor."""
        from sonicmoe.enums import ActivationType
        from sonicmoe.functional import moe_general_routing_inputs

        activation = ActivationType(case.activation)
        stream = torch.cuda.current_stream().cuda_stream
        wi_EHD = weights.wi_EDH.mT
        if case.gated:
            wi_EHD = torch.stack(wi_EHD.chunk(2, dim=1), dim=2).flatten(1, 2)
        wi_EHD = wi_EHD.contiguous().requires_grad_()
        wo_EDF = weights.wo_EFD.mT.contiguous().requires_grad_()
        token_T = torch.arange(case.tokens, device=wi_EHD.device, dtype=torch.int32)
        token_N = token_T.repeat_interleave(case.top_k)

        def forward(x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor) -> Tensor:
            y_TD, _ = moe_general_routing_inputs(
                x_TD,
                weight_TK.flatten(),
                token_N,
                expert_TK.flatten().to(torch.int32),
                wi_EHD.permute(1, 2, 0),
                None,
                wo_EDF.permute(1, 2, 0),
                None,
                case.num_experts,
                stream,
                activation,
            )
            return y_TD

        def to_our_layout(gradients: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
            dwi_EHD, dwo_EDF = gradients
            if case.gated:
                dwi_EHD = dwi_EHD.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)
            return dwi_EHD.mT, dwo_EDF.mT

        return Side(forward=forward, parameters=(wi_EHD, wo_EDF), to_our_layout=to_our_layout)
