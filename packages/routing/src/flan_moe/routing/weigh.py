"""Combine weights: the gate of each selected (token, expert) pair, differentiable.

Shape suffixes: T tokens, E experts, K choices per token, C tokens per expert.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_choice_weights(
    logits_TE: Tensor, scores_TE: Tensor, expert_TK: Tensor, *, score: str, over_TK: Tensor | None
) -> Tensor:
    """Gates of the experts that each token chose.

    Args:
        logits_TE: (T, E).
        scores_TE: (T, E) of `expert_scores`.
        expert_TK: (T, K) chosen experts; negative for no choice (its weight is 0).
        score: as in `expert_scores`.
        over_TK: (T, K) bool, the choices over which a token's weights sum to one; the others'
            weights are 0. None for scores as they are.

    Returns:
        (T, K), in the dtype of the logits.
    """
    absent_TK = expert_TK < 0
    index_TK = expert_TK.clamp(min=0)
    if over_TK is None and score != "top_k_softmax":
        return scores_TE.gather(-1, index_TK).masked_fill(absent_TK, 0.0)
    if over_TK is not None:
        absent_TK = absent_TK | ~over_TK
    if score in ("softmax", "top_k_softmax"):
        # A softmax over the chosen logits equals the chosen probabilities divided by their sum,
        # but cannot divide by an underflowed sum. The lowest finite number, not -inf: a token may
        # have no choice at all.
        chosen_TK = logits_TE.gather(-1, index_TK)
        lowest = torch.finfo(chosen_TK.dtype).min
        weight_TK = chosen_TK.masked_fill(absent_TK, lowest).softmax(dim=-1)
        return weight_TK.masked_fill(absent_TK, 0.0)
    weight_TK = scores_TE.gather(-1, index_TK).masked_fill(absent_TK, 0.0)
    return weight_TK / (weight_TK.sum(dim=-1, keepdim=True) + 1e-20)


def expert_choice_weights(
    logits_TE: Tensor, scores_TE: Tensor, token_EC: Tensor, *, score: str, renormalise: bool
) -> Tensor:
    """Gates of the tokens that each expert chose.

    Args:
        logits_TE: (T, E).
        scores_TE: (T, E) of `expert_scores`.
        token_EC: (E, C) chosen tokens, distinct for one expert.
        score: as in `expert_scores`, not ``"top_k_softmax"``.
        renormalise: over the experts that chose a token, so that they sum to one.

    Returns:
        (E, C): the score of token t for expert e, unless renormalised.
    """
    if renormalise:
        lost_TE = torch.ones_like(logits_TE, dtype=torch.bool).scatter_(0, token_EC.T, False)
        if score == "softmax":
            lowest = torch.finfo(logits_TE.dtype).min  # no expert may have chosen the token
            scores_TE = logits_TE.masked_fill(lost_TE, lowest).softmax(dim=-1)
        else:
            scores_TE = scores_TE.masked_fill(lost_TE, 0.0)
            scores_TE = scores_TE / (scores_TE.sum(dim=-1, keepdim=True) + 1e-20)
    return scores_TE.T.gather(-1, token_EC)
