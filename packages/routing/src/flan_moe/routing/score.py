"""Scores: from hidden states to what each expert is worth to each token, in float32.

Shape suffixes: T tokens, D model width, E experts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def jittered(x_TD: Tensor, epsilon: float) -> Tensor:
    """A copy of ``x_TD`` multiplied elementwise by noise from U(1 - epsilon, 1 + epsilon).

    Source: Switch Transformer (Fedus et al. 2021, section 2.4). The argument is never written
    to: the experts must see the input without the noise.
    """
    return x_TD * torch.empty_like(x_TD).uniform_(1.0 - epsilon, 1.0 + epsilon)


def router_logits(x_TD: Tensor, weight_ED: Tensor, *, jitter: float = 0.0) -> Tensor:
    """Logits of every expert for every token, in float32 whatever narrower dtype the inputs have.

    Args:
        x_TD: (T, D) tokens, any floating dtype.
        weight_ED: (E, D) router weight, any floating dtype.
        jitter: amplitude of the input noise; 0 for none.

    Returns:
        (T, E) float32 (float64 if tokens or weight are). Autocast is suspended: selecting experts
        is a discrete choice that bfloat16 rounding changes (ST-MoE, Zoph et al. 2022, section 3.4).
    """
    dtype = torch.promote_types(torch.promote_types(x_TD.dtype, weight_ED.dtype), torch.float32)
    device = "cpu" if x_TD.is_meta else x_TD.device.type  # the meta device has no autocast
    with torch.autocast(device_type=device, enabled=False):
        x_TD = x_TD.to(dtype)
        if jitter > 0.0:
            x_TD = jittered(x_TD, jitter)
        return F.linear(x_TD, weight_ED.to(dtype))


def noisy(logits_TE: Tensor, std: float) -> Tensor:
    """Logits with Gaussian noise of a standard deviation added (V-MoE, Riquelme et al. 2021)."""
    return logits_TE + std * torch.randn_like(logits_TE)


def expert_scores(logits_TE: Tensor, score: str) -> Tensor:
    """What each expert is worth to each token: what selection compares and weights are made of.

    Args:
        logits_TE: (T, E).
        score: ``"softmax"``; ``"sigmoid"`` (DeepSeek-V3); ``"sqrt_softplus"`` (DeepSeek-V4); or
            ``"top_k_softmax"``, whose scores are the logits themselves, because its softmax comes
            after the selection (gpt-oss).

    Returns:
        (T, E) in the dtype of the logits.
    """
    match score:
        case "softmax":
            return logits_TE.softmax(dim=-1)
        case "sigmoid":
            return logits_TE.sigmoid()
        case "sqrt_softplus":
            # Bounded below: where softplus underflows, the root's slope times zero would be NaN.
            tiny = torch.finfo(logits_TE.dtype).tiny
            return F.softplus(logits_TE).clamp(min=tiny).sqrt()
        case "top_k_softmax":
            return logits_TE
    raise ValueError(f"score={score!r}: expected 'softmax', 'sigmoid', ... (see RouterConfig)")


def expert_probabilities(logits_TE: Tensor, scores_TE: Tensor, score: str) -> Tensor:
    """Scores as probabilities over the experts: what the balance loss pushes towards uniform.

    The softmax; for sigmoid and sqrt-softplus the scores divided by their sum over all experts
    (DeepSeek-V3, equation 19).
    """
    if score in ("sigmoid", "sqrt_softplus"):
        return scores_TE / (scores_TE.sum(dim=-1, keepdim=True) + 1e-20)
    return scores_TE if score == "softmax" else logits_TE.softmax(dim=-1)
