"""Confidence: how decided a router is about its tokens.

The entropy is in every routing's statistics (``stats["router_entropy"]``); the margin is not,
because it needs the logits.

Shape suffixes: T tokens, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def router_margin(logits_TE: Tensor) -> Tensor:
    """Mean over tokens of the best expert's probability minus the second best's.

    ``mean_t (p_t(1) - p_t(2))`` with p the softmax over all experts. A small margin means that
    rounding, another kernel or another precision can flip the first choice.

    Args:
        logits_TE: (T, E) router logits, any floating dtype; see `router_logits`.

    Returns:
        float32 scalar in [0, 1]. Undecided: 0. Certain: 1. E = 1: 1 (the second best has
        probability 0). No tokens: 0.

    Raises:
        ValueError: if the shape is not (T, E).
    """
    if logits_TE.ndim != 2:
        raise ValueError(
            f"logits_TE has shape {tuple(logits_TE.shape)}; expected (tokens, experts)"
        )
    probs_TE = logits_TE.float().softmax(dim=-1)
    if probs_TE.shape[1] == 1:
        margin_T = probs_TE[:, 0]
    else:
        best_T2 = probs_TE.topk(2, dim=-1).values
        margin_T = best_T2[:, 0] - best_T2[:, 1]
    return (margin_T.sum(dtype=torch.float64) / max(logits_TE.shape[0], 1)).float()
