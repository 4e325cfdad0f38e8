"""The right answer, in float64, expert by expert, and how far another one is from it.

Uses nothing of `flan_moe`. Shape suffixes: T tokens, K choices per token, E experts, D model
width, F hidden width, H = 2F for gated activations, else F; lower-case r: the rows of one expert.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from peers.case import Case, Problem
from peers.side import Answer


def reference(case: Case, problem: Problem) -> Answer:
    """Output and gradients computed in float64; weight gradients rounded to float32 to fit."""
    x_TD, expert_TK, weight_TK, weights, dy_TD = problem
    wide = {"dtype": torch.float64, "device": x_TD.device}
    y_TD = torch.zeros(x_TD.shape, **wide)
    dx_TD = torch.zeros(x_TD.shape, **wide)
    dweight_TK = torch.zeros(weight_TK.shape, **wide)
    dwi_EDH = torch.zeros(weights.wi_EDH.shape, device=x_TD.device)
    dwo_EFD = torch.zeros(weights.wo_EFD.shape, device=x_TD.device)
    for expert in range(case.num_experts):
        token_r, choice_r = (expert_TK == expert).nonzero(as_tuple=True)
        x_rD, weight_r, wi_DH, wo_FD = (
            tensor.double().requires_grad_()
            for tensor in (
                x_TD[token_r],
                weight_TK[token_r, choice_r],
                weights.wi_EDH[expert],
                weights.wo_EFD[expert],
            )
        )
        y_rD = weight_r[:, None] * (case.activate(x_rD @ wi_DH) @ wo_FD)
        dx_rD, dweight_r, dwi_DH, dwo_FD = torch.autograd.grad(
            y_rD, (x_rD, weight_r, wi_DH, wo_FD), dy_TD[token_r].double()
        )
        y_TD.index_add_(0, token_r, y_rD.detach())
        dx_TD.index_add_(0, token_r, dx_rD)
        dweight_TK[token_r, choice_r] = dweight_r
        dwi_EDH[expert], dwo_EFD[expert] = dwi_DH, dwo_FD
    return Answer(y_TD, dx_TD, dwi_EDH, dwo_EFD, dweight_TK)


def relative_errors(answer: Answer, expected: Answer) -> dict[str, float]:
    """Norm of the difference over the norm of what is expected, for each tensor.

    ``dwi, worst expert`` and ``dwo, worst expert`` are the largest over the experts. Infinite
    where anything is not finite, or not zero where zero is expected.
    """
    errors = {}
    for name in ("y_TD", "dx_TD", "dweight_TK", "dwi_EDH", "dwo_EFD"):
        actual, right = getattr(answer, name), getattr(expected, name)
        if actual.shape != right.shape:
            raise ValueError(f"{name} has shape {tuple(actual.shape)}, not {tuple(right.shape)}")
        by_expert = name.endswith(("EDH", "EFD"))
        pairs = zip(actual, right, strict=True) if by_expert else ((actual, right),)
        norms = [_norms(*pair) for pair in pairs]
        short = name.partition("_")[0]
        errors[short] = _ratio(*(math.hypot(*parts) for parts in zip(*norms, strict=True)))
        if by_expert:
            errors[f"{short}, worst expert"] = max(_ratio(*pair) for pair in norms)
    return errors


def _norms(actual: Tensor, right: Tensor) -> tuple[float, float]:
    return (actual.double() - right.double()).norm().item(), right.double().norm().item()


def _ratio(difference: float, size: float) -> float:
    if not math.isfinite(difference):
        return math.inf
    if size == 0.0:
        return 0.0 if difference == 0.0 else math.inf
    return difference / size
