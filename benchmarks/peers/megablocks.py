"""MegaBlocks' dropless experts, grouped and memory-optimised (sparse ones need triton < 3.2)."""

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
class MegaBlocks:
    """Databricks, github.com/databricks/megablocks, where installed with grouped_gemm."""

    name: str = "megablocks"

    def available(self) -> str | None:
        """See `Peer.available`."""
        for module in ("megablocks.layers.dmoe", "grouped_gemm"):
            problem = Package(module=module, distribution=module).problem()
            if problem is not None:
                return problem
        return None

    def supports(self, case: Case) -> str | None:
        """See `Peer.supports`."""
        return None

    def version(self) -> str:
        """See `Peer.version`."""
        return Package(module="megablocks", distribution="megablocks").version()

    def build(self, case: Case, weights: ExpertWeights) -> Side:
        """See `Peer.build`. Its weights are (E F, D); the halves of a gated wi are apart."""
        from megablocks.layers.arguments import Arguments
        from megablocks.layers.dmoe import ParallelDroplessMLP

        dtype = weights.wi_EDH.dtype
        layer = ParallelDroplessMLP(
            Arguments(
                hidden_size=case.d_model,
                ffn_hidden_size=case.d_ff,
                bias=False,
                return_bias=False,
                activation_fn=case.elementwise,
                moe_num_experts=case.num_experts,
                moe_top_k=case.top_k,
                memory_optimized_mlp=True,
                mlp_type="glu" if case.gated else "mlp",
                mlp_impl="grouped",
                fp16=dtype == torch.float16,
                bf16=dtype == torch.bfloat16,
            )
        )
        halves = weights.wi_EDH.chunk(2 if case.gated else 1, dim=-1)
        own = (layer.mlp.w1, *((layer.mlp.v1,) if case.gated else ()), layer.mlp.w2)
        with torch.no_grad():
            for parameter, half_EDF in zip(own, halves, strict=False):
                parameter.copy_(half_EDF.mT.flatten(0, 1))
            layer.mlp.w2.copy_(weights.wo_EFD.flatten(0, 1))

        def forward(x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor) -> Tensor:
            y_TD, _ = layer.forward_once(x_TD, weight_TK.to(x_TD.dtype), expert_TK)
            return y_TD

        def to_our_layout(gradients: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
            *wi, wo = (gradient.unflatten(0, (case.num_experts, -1)) for gradient in gradients)
            return torch.cat([half_EFD.mT for half_EFD in wi], dim=-1), wo

        return Side(forward=forward, parameters=own, to_our_layout=to_our_layout)
