"""Auxiliary losses of a router, unweighted.

"Coefficient 0.01" means different things in different code bases, because balance losses differ in
their value at balance. `balance_loss` says which one it is; the others here have one definition.

Shape suffixes: T tokens, E experts, K choices per token.
"""

from __future__ import annotations

import torch
from torch import Tensor


def balance_loss(
    probs_TE: Tensor,
    expert_TK: Tensor,
    *,
    normalisation: str,
    sequence_T: Tensor | None = None,
    load_E: Tensor | None = None,
) -> Tensor:
    """Load-balance loss ``E * sum_e f_e P_e``.

    P_e is the mean probability of expert e. f_e is the fraction of assignments that went to it,
    before capacity drops any: with ``normalisation="one"`` of all assignments, so that the loss is
    1 at balance (Switch, GShard, ST-MoE, MegaBlocks, OLMo-core, Megatron); with ``"k"`` relative to
    tokens, so that it is K (flaxformer, transformers' Mixtral family). For K = 1 they are the same,
    Fedus et al. 2021, equation 4. GShard, ST-MoE and Mesh TensorFlow count first choices only: pass
    ``expert_TK[:, :1]``.

    Args:
        probs_TE: (T, E) probabilities; the gradient flows through these.
        expert_TK: (T, K) chosen experts; negative for no choice.
        normalisation: ``"one"`` or ``"k"``.
        sequence_T: (T,) sequence ids in [0, T): the mean over sequences of each sequence's own
            loss (DeepSeek-V3, equations 17 to 20).
        load_E: (E,) assignments of each expert in a larger batch, of which these tokens are a
            part, to take f from (global-batch loss, Qiu et al. 2025, arXiv 2501.11873).

    Returns:
        scalar in the dtype of the probabilities; 0 for no tokens.

    Raises:
        ValueError: for another normalisation, or choices of other tokens or of none.
    """
    if normalisation not in ("one", "k"):
        raise ValueError(f"normalisation={normalisation!r}: expected 'one' or 'k'")
    if expert_TK.ndim != 2 or expert_TK.shape[0] != probs_TE.shape[0] or not expert_TK.shape[1]:
        raise ValueError(
            f"expert_TK has shape {tuple(expert_TK.shape)}; expected ({probs_TE.shape[0]}, "
            "choices per token), at least one"
        )
    num_tokens, num_experts = probs_TE.shape
    per_token = expert_TK.shape[1] if normalisation == "one" else 1
    if sequence_T is not None:
        return _sequence_balance(probs_TE, expert_TK, sequence_T) / per_token
    if load_E is None:
        fraction_E = choice_counts(expert_TK, num_experts) / max(num_tokens, 1)
    else:
        fraction_E = load_E * (expert_TK.shape[1] / load_E.sum().clamp(min=1))
    mean_prob_E = probs_TE.sum(dim=0) / max(num_tokens, 1)
    return num_experts * (fraction_E * mean_prob_E).sum() / per_token


def _sequence_balance(probs_TE: Tensor, expert_TK: Tensor, sequence_T: Tensor) -> Tensor:
    """Mean over sequences of ``E * sum_e f_e P_e``, f relative to tokens.

    There are at most T sequences, so that nobody has to wait for their number.
    """
    num_tokens, num_experts = probs_TE.shape
    sequence_T = sequence_T.long()
    length_S = torch.zeros(num_tokens, dtype=probs_TE.dtype, device=probs_TE.device)
    length_S = length_S.index_add(0, sequence_T, torch.ones_like(length_S))
    prob_SE = torch.zeros_like(probs_TE).index_add(0, sequence_T, probs_TE)
    slot_TK = sequence_T[:, None] * num_experts + expert_TK.clamp(min=0)
    count_SE = choice_counts(
        torch.where(expert_TK < 0, -1, slot_TK), num_tokens * num_experts
    ).view(num_tokens, num_experts)
    loss_S = (count_SE * prob_SE).sum(dim=-1) / length_S.clamp(min=1).square()
    return num_experts * loss_S.sum() / (length_S > 0).sum().clamp(min=1)


def z_loss(logits_TE: Tensor, *, log_partition_T: Tensor | None = None) -> Tensor:
    """Mean over tokens of ``logsumexp(logits) ** 2`` (ST-MoE, Zoph et al. 2022, equation 5).

    Uniform zero logits give ``ln(E) ** 2``.

    Args:
        logits_TE: (T, E).
        log_partition_T: (T,) the logsumexp, where it is known already.

    Returns:
        scalar in the dtype of the logits; 0 for no tokens.
    """
    if log_partition_T is None:
        log_partition_T = logits_TE.logsumexp(dim=-1)
    return log_partition_T.square().sum() / max(logits_TE.shape[0], 1)


def importance_loss(probs_TE: Tensor) -> Tensor:
    """Squared coefficient of variation of the experts' summed probabilities.

    Source: Shazeer et al. 2017, equation 6. 0 at balance, E - 1 if one expert has everything.
    """
    return _squared_variation(probs_TE.sum(dim=0))


def load_loss(logits_TE: Tensor, noisy_logits_TE: Tensor, std: float, *, k: int) -> Tensor:
    """Squared coefficient of variation of the experts' expected load under fresh noise.

    The load of an expert is the sum over tokens of the probability that its logit, with new
    Gaussian noise, reaches the token's k-th largest noisy logit: a differentiable count. Source:
    Shazeer et al. 2017, appendix A, in V-MoE's form (Riquelme et al. 2021, appendix A.2).

    Args:
        logits_TE: (T, E) without noise.
        noisy_logits_TE: (T, E) that the experts were chosen by.
        std: of the noise.
        k: choices per token.
    """
    threshold_T1 = noisy_logits_TE.topk(k, dim=-1).values[:, -1:]
    load_TE = torch.special.ndtr((logits_TE - threshold_T1) / std)
    return _squared_variation(load_TE.sum(dim=0))


def choice_counts(expert_TK: Tensor, num_experts: int) -> Tensor:
    """How many tokens chose each expert, (E,) float32; negative entries do not count."""
    flat_N = expert_TK.reshape(-1)
    present_N = (flat_N >= 0).float()
    count_E = torch.zeros(num_experts, dtype=torch.float32, device=flat_N.device)
    # A sum of ones is exact in float32 (below 2**24 tokens) in whatever order it is added.
    return count_E.scatter_add_(0, flat_N.clamp(min=0), present_N)


def _squared_variation(amount_E: Tensor) -> Tensor:
    return amount_E.var(unbiased=False) / (amount_E.mean().square() + 1e-10)
