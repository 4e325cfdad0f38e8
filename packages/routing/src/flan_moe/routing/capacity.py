"""Capacity: how many tokens an expert takes, and which assignments fit.

Shape suffixes: T tokens, K choices per token, N = T * K assignments.
"""

from __future__ import annotations

import torch
from torch import Tensor


def expert_capacity(
    factor: float, *, num_tokens: int, num_experts: int, min_capacity: int = 0
) -> int:
    """Tokens per expert: ``max(round(factor * T / E), min_capacity)``, at most T.

    This is the rule of flaxformer (``moe/moe_layers.py``), with Python's ``round``, which rounds
    halves to even. Others differ by rounding: Mesh TensorFlow's Switch takes the floor, V-MoE and
    DeepSpeed the ceiling. Like flaxformer and Mesh, and unlike V-MoE, DeepSpeed and Megatron, the
    number of choices per token is *not* a factor: top-2 routing at factor 1.25 has room for 1.25
    assignments per token.
    """
    wanted = round(factor * num_tokens / num_experts)
    return min(max(wanted, min_capacity), num_tokens)


def fits_capacity(expert_TK: Tensor, *, num_experts: int, capacity: int) -> Tensor:
    """Which assignments find room when experts fill up in the order of the queue.

    All first choices queue before all second choices, and so on; within one choice, tokens queue
    from left to right (flaxformer's tokens-choose and Mesh TensorFlow's Switch, without batch
    priority). An assignment of a token never depends on the first choices of later tokens, but a
    second choice does queue behind the first choices of later tokens: with more than one choice,
    only a capacity that does not bind keeps routing causal.

    Args:
        expert_TK: (T, K) chosen experts, best first; negative for no choice.
        num_experts: E.
        capacity: assignments that each expert takes.

    Returns:
        (T, K) bool.
    """
    num_tokens, k = expert_TK.shape
    queue_N = expert_TK.T.reshape(-1)  # choice-major: the order in which assignments are served
    # Rank within an expert from one stable sort: no (N, E) running counts.
    sorted_N, order_N = torch.sort(queue_N, stable=True)
    experts_E = torch.arange(num_experts, device=queue_N.device, dtype=queue_N.dtype)
    start_E = torch.searchsorted(sorted_N, experts_E)
    position_N = torch.arange(queue_N.shape[0], device=queue_N.device)
    rank_N = position_N - start_E.index_select(0, sorted_N.clamp(min=0))
    fits_N = torch.empty_like(queue_N, dtype=torch.bool)
    fits_N[order_N] = (rank_N < capacity) & (sorted_N >= 0)
    return fits_N.reshape(k, num_tokens).T
