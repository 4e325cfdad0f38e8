"""Measurements of a routing decision: detached, float32, never part of a loss.

Shape suffixes: T tokens, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def routing_statistics(
    *, logits_TE: Tensor, expert_offsets: Tensor, token_offsets: Tensor
) -> dict[str, Tensor]:
    """Load, drops and entropy of one routing.

    Args:
        logits_TE: (T, E) float32 router logits.
        expert_offsets: (E+1,) int32 of the routing.
        token_offsets: (T+1,) int32 of the routing.

    Returns:
        ``expert_load_E`` (E,): rows that each expert works on. ``dropped_fraction``: fraction of
        tokens that no expert works on (flaxformer's ``fraction_tokens_left_behind``).
        ``router_entropy``: mean over tokens of the entropy of the router's softmax, in nats
        (ln E when undecided, 0 when certain). For no tokens both scalars are 0.
    """
    num_tokens = max(logits_TE.shape[0], 1)
    log_prob_TE = logits_TE.log_softmax(dim=-1)
    return {
        "expert_load_E": expert_offsets.diff().float(),
        "dropped_fraction": (token_offsets.diff() == 0).float().sum() / num_tokens,
        "router_entropy": (log_prob_TE.exp() * -log_prob_TE).sum() / num_tokens,
    }
