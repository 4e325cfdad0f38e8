"""Combine weights: the gate of each selected (token, expert) pair, differentiable.

Renormalising is a softmax over the selected logits, which equals the selected probabilities
divided by their sum but cannot divide by an underflowed sum.

Shape suffixes: T tokens, E experts, K choices per token, C tokens per expert.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_choice_weights(logits_TE: Tensor, expert_TK: Tensor, *, normalize: bool) -> Tensor:
    """Gates of the experts that each token chose.

    Args:
        logits_TE: (T, E) float32.
        expert_TK: (T, K) chosen experts; negative for no choice (its weight is 0).
        normalize: renormalise over the token's choices, so that they sum to one.

    Returns:
        (T, K) float32, softmax probabilities unless normalised.
    """
    absent_TK = expert_TK < 0
    index_TK = expert_TK.clamp(min=0)
    if normalize:
        chosen_TK = logits_TE.gather(-1, index_TK)
        lowest = torch.finfo(chosen_TK.dtype).min  # not -inf: a token may have no choice at all
        weight_TK = chosen_TK.masked_fill(absent_TK, lowest).softmax(dim=-1)
    else:
        weight_TK = logits_TE.softmax(dim=-1).gather(-1, index_TK)
    return weight_TK.masked_fill(absent_TK, 0.0)


def expert_choice_weights(logits_TE: Tensor, token_EC: Tensor, *, normalize: bool) -> Tensor:
    """Gates of the tokens that each expert chose.

    Args:
        logits_TE: (T, E) float32.
        token_EC: (E, C) chosen tokens, distinct for one expert.
        normalize: renormalise over the experts that chose a token, so that they sum to one.

    Returns:
        (E, C) float32: p[t, e], unless normalised.
    """
    if normalize:
        chosen_TE = torch.zeros_like(logits_TE, dtype=torch.bool)
        chosen_TE.scatter_(0, token_EC.T, True)
        # The lowest finite number, not -inf: no expert may have chosen the token.
        logits_TE = logits_TE.masked_fill(~chosen_TE, torch.finfo(logits_TE.dtype).min)
    return logits_TE.softmax(dim=-1).T.gather(-1, token_EC)
