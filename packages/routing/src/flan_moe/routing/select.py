"""Selection: which experts a token prefers, which tokens an expert prefers.

Ties go to the lowest index on every device: `torch.topk` promises no order among equals, a
stable sort does.

Shape suffixes: T tokens, E experts, K choices per token, C tokens per expert.
"""

from __future__ import annotations

import torch
from torch import Tensor


def preferred_experts(logits_TE: Tensor, k: int) -> Tensor:
    """The k experts with the highest score for each token, best first.

    Args:
        logits_TE: (T, E) scores; any monotone function of the probabilities does.
        k: choices per token, at most E.

    Returns:
        (T, K) int64; ties go to the expert with the lowest index.
    """
    if k == 1:
        return logits_TE.argmax(dim=-1, keepdim=True)  # documented to return the first maximum
    return torch.sort(logits_TE, dim=-1, descending=True, stable=True).indices[:, :k]


def preferred_tokens(probs_TE: Tensor, capacity: int) -> Tensor:
    """The tokens with the highest probability for each expert, best first.

    Source: Expert Choice (Zhou et al. 2022, section 3.2).

    Args:
        probs_TE: (T, E) probabilities, normalised over experts.
        capacity: C, tokens per expert, at most T.

    Returns:
        (E, C) int64; ties go to the token with the lowest index.
    """
    return torch.sort(probs_TE.T, dim=-1, descending=True, stable=True).indices[:, :capacity]
