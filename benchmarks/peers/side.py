"""The protocol of a peer, and one forward and backward pass through what it builds.

Shape suffixes: T tokens, K choices per token, E experts, D model width, F hidden width, H = 2F
for gated activations, else F.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from flan_moe.experts import ExpertWeights
from peers.case import Case, Problem


@dataclass(frozen=True, kw_only=True)
class Side:
    """A layer ready to run.

    Attributes:
        forward: from x_TD, expert_TK and weight_TK to y_TD. Sorting the choices is part of it.
        parameters: the layer's own leaves, in its own layout.
        to_our_layout: from their gradients to (dwi_EDH, dwo_EFD).
    """

    forward: Callable[[Tensor, Tensor, Tensor], Tensor]
    parameters: tuple[Tensor, ...]
    to_our_layout: Callable[[Sequence[Tensor]], tuple[Tensor, Tensor]]


def transposed(gradients: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """`Side.to_our_layout` of weights stored as (E, H, D) and (E, D, F)."""
    dwi_EHD, dwo_EDF = gradients
    return dwi_EHD.mT, dwo_EDF.mT


class Peer(Protocol):
    """Someone's expert layer."""

    name: str

    def available(self) -> str | None:
        """Why it cannot be used here at all, or None."""
        ...

    def supports(self, case: Case) -> str | None:
        """Why it cannot run this case, or None."""
        ...

    def version(self) -> str:
        """What was measured: a commit or a version."""
        ...

    def build(self, case: Case, weights: ExpertWeights) -> Side:
        """The layer with a copy of these weights."""
        ...


class Answer(NamedTuple):
    """Output and gradients of one pass."""

    y_TD: Tensor
    dx_TD: Tensor
    dwi_EDH: Tensor
    dwo_EFD: Tensor
    dweight_TK: Tensor


class Leaves(NamedTuple):
    """The inputs of a layer that get a gradient, apart from its parameters."""

    x_TD: Tensor
    weight_TK: Tensor


def leaves(problem: Problem) -> Leaves:
    """Copies of tokens and combine weights that require gradients."""
    return Leaves(problem.x_TD.clone().requires_grad_(), problem.weight_TK.clone().requires_grad_())


def run(side: Side, problem: Problem) -> Answer:
    """One forward and backward pass."""
    x_TD, weight_TK = leaves(problem)
    y_TD = side.forward(x_TD, problem.expert_TK, weight_TK)
    dx_TD, dweight_TK, *gradients = torch.autograd.grad(
        y_TD, (x_TD, weight_TK, *side.parameters), problem.dy_TD
    )
    return Answer(y_TD.detach(), dx_TD, *side.to_our_layout(gradients), dweight_TK)
