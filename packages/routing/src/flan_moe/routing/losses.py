"""Auxiliary losses of a router, unweighted.

Shape suffixes: T tokens, E experts, K choices per token.
"""

from __future__ import annotations

import torch
from torch import Tensor


def balance_loss(probs_TE: Tensor, expert_TK: Tensor) -> Tensor:
    """Load-balance loss ``E * sum_e f_e P_e``; equals K when perfectly balanced.

    f_e is the fraction of tokens that chose expert e, over all K choices and before capacity
    drops any; P_e is the mean probability of expert e. With K = 1 it is the Switch loss (Fedus et
    al. 2021, equation 4), whose balanced value is 1; with K > 1 it is flaxformer's
    ``load_balancing_loss``, whose balanced value is K. Implementations that divide by K
    (Megatron, OLMo-core) or count first choices only (GShard, Mesh TensorFlow) need a
    coefficient K times larger for the same gradient scale.

    Args:
        probs_TE: (T, E) float32 probabilities; the gradient flows through these.
        expert_TK: (T, K) chosen experts; negative for no choice.

    Returns:
        float32 scalar; 0 for no tokens.
    """
    num_tokens, num_experts = probs_TE.shape
    fraction_E = choice_counts(expert_TK, num_experts) / max(num_tokens, 1)
    mean_prob_E = probs_TE.sum(dim=0) / max(num_tokens, 1)
    return num_experts * (fraction_E * mean_prob_E).sum()


def z_loss(logits_TE: Tensor) -> Tensor:
    """Mean over tokens of ``logsumexp(logits) ** 2`` (ST-MoE, Zoph et al. 2022, equation 5).

    Uniform zero logits give ``ln(E) ** 2``.

    Returns:
        float32 scalar; 0 for no tokens.
    """
    return logits_TE.logsumexp(dim=-1).square().sum() / max(logits_TE.shape[0], 1)


def choice_counts(expert_TK: Tensor, num_experts: int) -> Tensor:
    """How many tokens chose each expert, (E,) float32; negative entries do not count."""
    flat_N = expert_TK.reshape(-1)
    present_N = (flat_N >= 0).float()
    count_E = torch.zeros(num_experts, dtype=torch.float32, device=flat_N.device)
    # A sum of ones is exact in float32 (below 2**24 tokens) in whatever order it is added.
    return count_E.scatter_add_(0, flat_N.clamp(min=0), present_N)
