"""Load: how evenly experts are used, and what found no room.

The functions of ``load_E`` take counts with any leading axes (layers, steps) and reduce the last
one, E. Counts add: sum them over micro-batches, ranks or steps first, then measure; the mean of
per-batch violations is not the violation of the whole. Sums run in float64, since float32 stops
counting at 2**24.

Shape suffixes: T tokens, E experts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flan_moe.routing.contract import Routing


@torch.no_grad()
def load_share(load_E: Tensor) -> Tensor:
    """Share of the load that each expert carries: ``load_e / sum(load)``.

    Args:
        load_E: (..., E) tokens per expert, any numeric dtype.

    Returns:
        (..., E) float32 in [0, 1], summing to 1. Balanced: 1/E everywhere. One expert takes
        everything: 1 for it. No load at all: 0 everywhere.
    """
    return _share(load_E).float()


@torch.no_grad()
def max_violation(load_E: Tensor) -> Tensor:
    """MaxVio: how far the busiest expert is above an even load, ``max(load) / mean(load) - 1``.

    Source: auxiliary-loss-free load balancing (Wang et al. 2024, arXiv 2408.15664, section 4.1).
    Take the load of a whole global batch for their MaxVio_batch.

    Args:
        load_E: (..., E) tokens per expert.

    Returns:
        (...) float32 in [0, E - 1]. Balanced: 0. One expert takes everything: E - 1. No load: 0.
    """
    load_E = load_E.double()
    total = load_E.sum(dim=-1)
    violation = load_E.amax(dim=-1) * load_E.shape[-1] / _no_zero(total) - 1.0
    return torch.where(total > 0, violation, 0.0).float()


@torch.no_grad()
def load_cv(load_E: Tensor) -> Tensor:
    """Coefficient of variation of the load: population standard deviation over mean.

    Source: the importance and load losses of Shazeer et al. 2017 (section 4) are its square.

    Args:
        load_E: (..., E) tokens per expert.

    Returns:
        (...) float32 in [0, sqrt(E - 1)]. Balanced: 0. One expert takes everything:
        sqrt(E - 1). No load: 0.
    """
    load_E = load_E.double()
    mean = load_E.mean(dim=-1)
    return (load_E.std(dim=-1, correction=0) / _no_zero(mean)).float()


@torch.no_grad()
def usage_entropy(load_E: Tensor) -> Tensor:
    """Entropy of the load shares over its maximum: ``-sum(s_e ln s_e) / ln E``.

    It says how the *batch* spreads over experts; `router_entropy` in a routing's statistics says
    how undecided the router is about one token. Both can be high or low independently.

    Args:
        load_E: (..., E) tokens per expert.

    Returns:
        (...) float32 in [0, 1]. Balanced: 1 (E = 1 counts as balanced). One of several experts
        takes everything: 0. No load: 0.
    """
    num_experts = load_E.shape[-1]
    if num_experts == 1:
        return (load_E.sum(dim=-1) > 0).float()
    return (_entropy(_share(load_E)) / math.log(num_experts)).clamp(max=1.0).float()


@torch.no_grad()
def expert_usage(load_E: Tensor) -> Tensor:
    """Effective number of experts: ``exp(-sum(s_e ln s_e))`` of the load shares, in experts.

    The perplexity of the load: k equally loaded experts give k, and an expert that hardly works
    hardly counts. Flan-MoE (Shen et al. 2023) reports that larger models use fewer experts but
    does not define "expert usage"; this is our definition, not theirs.

    Args:
        load_E: (..., E) tokens per expert.

    Returns:
        (...) float32, in [1, E], or 0 for no load. Balanced: E. One expert takes everything: 1.
    """
    share_E = _share(load_E)
    usage = _entropy(share_E).exp().clamp(max=float(load_E.shape[-1]))
    return torch.where(share_E.sum(dim=-1) > 0, usage, 0.0).float()


@torch.no_grad()
def dead_experts(load_E: Tensor) -> Tensor:
    """How many experts have no load.

    Args:
        load_E: (..., E) tokens per expert. One small batch leaves many of a large number of
            experts idle by chance; count over enough tokens.

    Returns:
        (...) float32 in [0, E]. Balanced: 0. One expert takes everything: E - 1. No load: E.
    """
    return (load_E == 0).sum(dim=-1).float()


@torch.no_grad()
def dropped_assignments(routing: Routing, choices_per_token: int) -> Tensor:
    """Fraction of the assignments that tokens asked for and capacity refused.

    ``1 - rows / (T * k)``. For routers where tokens choose; expert choice drops no assignment,
    so use `dropped_tokens` there.

    Args:
        routing: a router's result.
        choices_per_token: k, ``RouterConfig.top_k``.

    Returns:
        float32 scalar in [0, 1]. Dropless: 0. No tokens: 0.
    """
    wanted = routing.num_tokens * choices_per_token
    rows = routing.expert_offsets[-1].double()
    return (1.0 - rows / wanted).float() if wanted else torch.zeros_like(rows).float()


@torch.no_grad()
def dropped_tokens(chosen_TK: Tensor) -> Tensor:
    """Fraction of tokens that no expert works on; the residual alone carries them.

    Equal to ``routing.stats["dropped_fraction"]``, for choices that were gathered or replayed.

    Args:
        chosen_TK: (T, K) from `chosen_experts`.

    Returns:
        float32 scalar in [0, 1]. Dropless: 0. No tokens: 0.
    """
    without_T = (chosen_TK < 0).all(dim=-1)
    return (without_T.sum().double() / max(chosen_TK.shape[0], 1)).float()


def _no_zero(total: Tensor) -> Tensor:
    return torch.where(total > 0, total, 1.0)


def _share(load_E: Tensor) -> Tensor:
    load_E = load_E.double()
    return load_E / _no_zero(load_E.sum(dim=-1, keepdim=True))


def _entropy(share_E: Tensor) -> Tensor:
    return -torch.xlogy(share_E, share_E).sum(dim=-1)
