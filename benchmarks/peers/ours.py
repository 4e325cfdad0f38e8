"""Our own layer, behind the protocol of the peers."""

from __future__ import annotations

import dataclasses
import importlib.util
from dataclasses import dataclass
from importlib import metadata

import torch
from torch import Tensor

from flan_moe.experts import ExpertWeights, expert_ffn
from flan_moe.routing import Routing, build_routing
from peers.case import Case
from peers.side import Side


@dataclass(frozen=True, kw_only=True)
class Ours:
    """`flan_moe.experts.expert_ffn`.

    Attributes:
        backend: of it.
        routing_given: whether the rows are sorted before the clock starts, as when a router of
            `flan_moe.routing` has done it, rather than from the choices as the peers do.
    """

    backend: str
    routing_given: bool = False

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.backend}, routing given" if self.routing_given else self.backend

    def available(self) -> str | None:
        """See `Peer.available`."""
        if self.backend == "triton" and importlib.util.find_spec("triton") is None:
            return "triton is not installed"
        return None

    def supports(self, case: Case) -> str | None:
        """See `Peer.supports`."""
        return None

    def version(self) -> str:
        """See `Peer.version`."""
        return metadata.version("flan-moe-experts")

    def build(self, case: Case, weights: ExpertWeights) -> Side:
        """See `Peer.build`."""
        own = ExpertWeights(*(w.clone().requires_grad_() for w in weights if w is not None))
        known: list[tuple[Routing, Tensor]] = []

        def forward(x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor) -> Tensor:
            if not self.routing_given:
                routing = _routing(case, expert_TK, weight_TK.flatten())
            else:
                if not known:
                    known.append(_sorted_once(case, expert_TK))
                routing, order_R = known[0]
                routing = dataclasses.replace(
                    routing, row_weight_R=weight_TK.flatten().index_select(0, order_R)
                )
            return expert_ffn(x_TD, routing, own, activation=case.activation, backend=self.backend)

        return Side(forward=forward, parameters=own[:2], to_our_layout=tuple)


def _routing(case: Case, expert_TK: Tensor, weight_N: Tensor) -> Routing:
    token_T = torch.arange(case.tokens, device=expert_TK.device)
    return build_routing(
        token_N=token_T.repeat_interleave(case.top_k),
        expert_N=expert_TK.flatten(),
        weight_N=weight_N,
        num_tokens=case.tokens,
        num_experts=case.num_experts,
        losses={},
        stats={},
    )


def _sorted_once(case: Case, expert_TK: Tensor) -> tuple[Routing, Tensor]:
    """The routing, and the place of each row among the choices, found by sorting the places."""
    place_N = torch.arange(expert_TK.numel(), device=expert_TK.device, dtype=torch.float64)
    routing = _routing(case, expert_TK, place_N)
    return routing, routing.row_weight_R.long()
