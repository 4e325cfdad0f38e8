"""A layer and a number of tokens, and random inputs for it.

Shape suffixes: T tokens, K choices per token, E experts, D model width, F hidden width, H = 2F
for gated activations, else F.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flan_moe.experts import ExpertWeights
from flan_moe.experts.accounting import CallShape

# Not those of `flan_moe.experts`, which are what is under test.
ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}
GATES = {"reglu": "relu", "geglu": "gelu", "swiglu": "silu"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One layer and one number of tokens."""

    name: str
    tokens: int
    d_model: int
    d_ff: int
    num_experts: int
    top_k: int
    activation: str

    @property
    def gated(self) -> bool:
        """Whether H = 2F."""
        return self.activation in GATES

    @property
    def elementwise(self) -> Callable[[Tensor], Tensor]:
        """What is applied to h, or to the gate."""
        return ELEMENTWISE[GATES.get(self.activation, self.activation)]

    @property
    def h_width(self) -> int:
        """H."""
        return 2 * self.d_ff if self.gated else self.d_ff

    @property
    def shape(self) -> CallShape:
        """For `flan_moe.experts.accounting`."""
        return CallShape(
            tokens=self.tokens,
            rows=self.tokens * self.top_k,
            num_experts=self.num_experts,
            d_model=self.d_model,
            d_ff=self.d_ff,
            activation=self.activation,
        )

    def activate(self, h_RH: Tensor) -> Tensor:
        """The hidden activation, in plain torch."""
        if not self.gated:
            return self.elementwise(h_RH)
        gate_RF, linear_RF = h_RH.chunk(2, dim=-1)
        return self.elementwise(gate_RF) * linear_RF

    def with_swiglu(self) -> Case:
        """The same sizes with SwiGLU, for peers that have nothing else."""
        return replace(self, name=f"{self.name}_swiglu", activation="swiglu")


class Problem(NamedTuple):
    """Inputs of a layer and the gradient of its output; entries are of order one throughout.

    Attributes:
        x_TD: tokens.
        expert_TK: int64, the experts of each token, all different.
        weight_TK: float32 combine weights.
        weights: of the experts.
        dy_TD: gradient of the output.
    """

    x_TD: Tensor
    expert_TK: Tensor
    weight_TK: Tensor
    weights: ExpertWeights
    dy_TD: Tensor


def make_problem(
    case: Case, *, device: str, dtype: torch.dtype, idle_experts: int = 0, seed: int = 0
) -> Problem:
    """Fresh random inputs; the last ``idle_experts`` experts are chosen by no token."""
    generator = torch.Generator(device).manual_seed(seed)
    on = {"device": device, "generator": generator}

    def normal(*sizes: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*sizes, **on) * scale).to(dtype)

    busy = case.num_experts - idle_experts
    return Problem(
        x_TD=normal(case.tokens, case.d_model),
        expert_TK=torch.rand(case.tokens, busy, **on).topk(case.top_k, dim=-1).indices,
        weight_TK=torch.rand(case.tokens, case.top_k, **on) + 0.5,
        weights=ExpertWeights(
            normal(case.num_experts, case.d_model, case.h_width, scale=case.d_model**-0.5),
            normal(case.num_experts, case.d_ff, case.d_model, scale=2 * case.d_ff**-0.5),
        ),
        dy_TD=normal(case.tokens, case.d_model),
    )
