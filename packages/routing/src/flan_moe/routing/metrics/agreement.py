"""Agreement: how far two routers, or one router at two times, choose alike for the same tokens.

Shape suffixes: T tokens, K experts listed per token (-1: none), E experts, J = K of both tables.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def expert_saturation(chosen_a_TK: Tensor, chosen_b_TK: Tensor) -> Tensor:
    """Mean over tokens of the share of experts that both choices have in common.

    ``mean_t |A_t & B_t| / max(|A_t|, |B_t|)``. Where every token has k experts this is router
    saturation, ``|A & B| / k`` (OLMoE, Muennighoff et al. 2024, arXiv 2409.02060, section 5.1,
    with B the final checkpoint); the maximum extends it, symmetrically, to drops and to expert
    choice. Tokens without experts on both sides say nothing and are left out.

    Args:
        chosen_a_TK: (T, K) from `chosen_experts`; the order within a token has no meaning.
        chosen_b_TK: (T, K') of the same tokens; K' may differ.

    Returns:
        float32 scalar in [0, 1]. The same choices: 1. Unrelated uniform choices of k: k / E in
        expectation. No tokens, or none with experts: 0.

    Raises:
        ValueError: if the two are not about the same number of tokens.
    """
    common_T, larger_T = _compare(chosen_a_TK, chosen_b_TK)
    share_T = common_T.double() / larger_T.clamp(min=1)
    return (share_T.sum() / (larger_T > 0).sum().clamp(min=1)).float()


@torch.no_grad()
def disagreement(chosen_a_TK: Tensor, chosen_b_TK: Tensor) -> Tensor:
    """Fraction of tokens whose sets of experts differ.

    The usual measure of a mismatch between an inference and a training engine (router replay,
    arXiv 2510.11370). Two empty sets are equal.

    Args:
        chosen_a_TK: (T, K) from `chosen_experts`; the order within a token has no meaning.
        chosen_b_TK: (T, K') of the same tokens; K' may differ.

    Returns:
        float32 scalar in [0, 1]. The same choices: 0. No tokens: 0.

    Raises:
        ValueError: if the two are not about the same number of tokens.
    """
    common_T, larger_T = _compare(chosen_a_TK, chosen_b_TK)
    return ((common_T != larger_T).sum().double() / max(common_T.shape[0], 1)).float()


@torch.no_grad()
def routing_kl(logits_p_TE: Tensor, logits_q_TE: Tensor) -> Tensor:
    """Mean over tokens of ``KL(p || q) = sum_e p_e (ln p_e - ln q_e)``, in nats.

    p and q are the softmaxes of two routers' logits for the same tokens, for example before (p)
    and after (q) instruction tuning. Not symmetric.

    Args:
        logits_p_TE: (T, E), any floating dtype; -inf is an expert that cannot be chosen.
        logits_q_TE: (T, E).

    Returns:
        float32 scalar, at least 0. Equal distributions: 0. p certain, q undecided: ln E. inf if
        q excludes an expert that p does not. No tokens: 0.

    Raises:
        ValueError: if the shapes differ, or are not (T, E).
    """
    if logits_p_TE.ndim != 2 or logits_p_TE.shape != logits_q_TE.shape:
        raise ValueError(
            f"logits of shapes {tuple(logits_p_TE.shape)} and {tuple(logits_q_TE.shape)}; "
            "expected the same tokens and experts"
        )
    log_p_TE = logits_p_TE.float().log_softmax(dim=-1)
    log_q_TE = logits_q_TE.float().log_softmax(dim=-1)
    p_TE = log_p_TE.exp()
    # 0 * ln 0 is 0; the difference of two -inf would be nan.
    term_TE = torch.where(p_TE > 0, p_TE * (log_p_TE - log_q_TE), 0.0)
    kl_T = term_TE.sum(dim=-1).clamp(min=0.0)  # rounding goes below zero
    return (kl_T.sum(dtype=torch.float64) / max(kl_T.shape[0], 1)).float()


def _compare(chosen_a_TK: Tensor, chosen_b_TK: Tensor) -> tuple[Tensor, Tensor]:
    """Sizes of each token's intersection and larger set, (T,) int64 each."""
    tables = chosen_a_TK.ndim == chosen_b_TK.ndim == 2
    if not tables or chosen_a_TK.shape[0] != chosen_b_TK.shape[0]:
        raise ValueError(
            f"choices of shapes {tuple(chosen_a_TK.shape)} and {tuple(chosen_b_TK.shape)}; "
            "expected (T, K) tables of the same tokens"
        )
    # An expert of both sets stands next to itself once the two are sorted together.
    sorted_TJ = torch.cat([chosen_a_TK, chosen_b_TK], dim=-1).sort(dim=-1).values
    twice_TJ = (sorted_TJ[:, 1:] == sorted_TJ[:, :-1]) & (sorted_TJ[:, 1:] >= 0)
    common_T = twice_TJ.sum(dim=-1)
    size_a_T, size_b_T = (chosen_a_TK >= 0).sum(dim=-1), (chosen_b_TK >= 0).sum(dim=-1)
    return common_T, torch.maximum(size_a_T, size_b_T)
