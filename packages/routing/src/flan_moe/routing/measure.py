"""What a routing says about itself: its auxiliary losses and its statistics.

Shape suffixes: T tokens, E experts, K choices per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flan_moe.routing.config import RouterConfig
from flan_moe.routing.losses import (
    balance_loss,
    choice_counts,
    importance_loss,
    load_loss,
    z_loss,
)
from flan_moe.routing.quantile import BIAS_HISTOGRAM, bias_histogram
from flan_moe.routing.score import expert_probabilities
from flan_moe.routing.statistics import router_entropy


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Tokens with what each expert is worth to them.

    Attributes:
        logits_TE: (T, E).
        noisy_logits_TE: (T, E) the logits that selection and weights are made of; without noise
            the same tensor.
        scores_TE: (T, E) of `expert_scores`.
        log_partition_T: (T,) logsumexp of the logits; None to compute it where it is used.
    """

    logits_TE: Tensor
    noisy_logits_TE: Tensor
    scores_TE: Tensor
    log_partition_T: Tensor | None


def auxiliary_losses(
    config: RouterConfig,
    scored: Scored,
    expert_TK: Tensor | None,
    *,
    sequence_T: Tensor | None,
    load_E: Tensor | None,
) -> dict[str, Tensor]:
    """``balance``, ``z`` and the extra losses of a router, unweighted.

    Args:
        config: of the router.
        scored: the tokens.
        expert_TK: (T, K) chosen experts; None where experts choose, and balance is no question.
        sequence_T: (T,) sequence ids, for ``balance_scope="sequence"``.
        load_E: (E,) assignments of the whole step, for ``balance_scope="global"``.
    """
    probs_TE = expert_probabilities(scored.noisy_logits_TE, scored.scores_TE, config.score)
    balance = probs_TE.new_zeros(())
    if expert_TK is not None:
        balance = balance_loss(
            probs_TE,
            expert_TK[:, :1] if config.balance_count == "first_choice" else expert_TK,
            normalisation=config.balance_normalisation,
            sequence_T=sequence_T if config.balance_scope == "sequence" else None,
            load_E=load_E,
        )
    z = z_loss(scored.logits_TE, log_partition_T=scored.log_partition_T)
    losses = {"balance": balance, "z": z}
    if "importance" in config.extra_losses:
        losses["importance"] = importance_loss(probs_TE)
    if "load" in config.extra_losses:
        losses["load"] = probs_TE.new_zeros(())
        if scored.noisy_logits_TE is not scored.logits_TE:  # no noise in evaluation
            losses["load"] = load_loss(
                scored.logits_TE, scored.noisy_logits_TE, config.noise, k=config.top_k
            )
    return losses


@torch.no_grad()
def measurements(
    config: RouterConfig, scored: Scored, chosen: Tensor, *, bias_E: Tensor | None
) -> dict[str, Tensor]:
    """The statistics of `Routing` that rows do not tell.

    Args:
        config: of the router.
        scored: the tokens.
        chosen: experts, one entry for each choice, before capacity; negative for none.
        bias_E: (E,) the biases that a training step was routed with, for the histogram that
            quantile balancing solves.
    """
    plain = config.score == "softmax" and scored.noisy_logits_TE is scored.logits_TE
    stats = {
        "router_entropy": router_entropy(
            scored.logits_TE,
            probs_TE=scored.scores_TE if plain else None,
            log_partition_T=scored.log_partition_T,
        ),
        "choice_count_E": choice_counts(chosen, config.num_experts),
    }
    if config.bias_update == "quantile" and bias_E is not None:
        stats[BIAS_HISTOGRAM] = bias_histogram(scored.scores_TE.float(), bias_E, k=config.top_k)
    return stats
