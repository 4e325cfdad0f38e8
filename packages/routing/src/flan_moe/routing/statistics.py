"""Measurements of a routing decision: detached, float32, never part of a loss.

Shape suffixes: T tokens, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor


def load_statistics(expert_offsets: Tensor, token_offsets: Tensor) -> dict[str, Tensor]:
    """What can be read off a routing's row counts.

    Args:
        expert_offsets: (E+1,) integer, rows by expert.
        token_offsets: (T+1,) integer, rows by token.

    Returns:
        ``expert_load_E`` (E,): rows that each expert works on. ``dropped_fraction``: fraction of
        tokens that no expert works on (flaxformer's ``fraction_tokens_left_behind``), 0 for no
        tokens.
    """
    rows_T = token_offsets.diff()
    return {
        "expert_load_E": expert_offsets.diff().float(),
        "dropped_fraction": (rows_T == 0).float().sum() / max(rows_T.shape[0], 1),
    }


@torch.no_grad()
def router_entropy(
    logits_TE: Tensor, *, probs_TE: Tensor | None = None, log_partition_T: Tensor | None = None
) -> Tensor:
    """Mean over tokens of the entropy of the softmax of the logits, in nats; 0 for no tokens.

    ln E when the router is undecided, 0 when it is certain.

    Args:
        logits_TE: (T, E).
        probs_TE: (T, E) their softmax, where it is known already.
        log_partition_T: (T,) their logsumexp, likewise.
    """
    probs_TE = logits_TE.softmax(dim=-1) if probs_TE is None else probs_TE
    if log_partition_T is None:
        log_partition_T = logits_TE.logsumexp(dim=-1)
    entropy = (probs_TE * (log_partition_T[:, None] - logits_TE)).sum()
    return (entropy / max(logits_TE.shape[0], 1)).float()
