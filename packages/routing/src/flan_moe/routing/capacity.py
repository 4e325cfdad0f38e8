"""Capacity: how many assignments an expert takes, and which assignments fit.

Shape suffixes: T tokens, K choices per token, N = T * K assignments, E experts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flan_moe.routing.order import group_offsets, narrowest_dtype, stable_order


def expert_capacity(
    factor: float,
    *,
    num_tokens: int,
    num_experts: int,
    choices: int = 1,
    min_capacity: int = 0,
    rounding: str = "round",
    multiple: int = 1,
) -> int:
    """Assignments per expert: ``factor * T * choices / E``, rounded and bounded, at most T.

    Args:
        factor: the capacity factor.
        num_tokens: T.
        num_experts: E.
        choices: 1 where the factor is per choice (flaxformer, Mesh TensorFlow: top-2 routing at
            factor 1.25 has room for 1.25 assignments per token), k where it is for all of them
            (V-MoE, DeepSpeed, Tutel, Megatron).
        min_capacity: lower bound.
        rounding: ``"round"``, halves to even (flaxformer); ``"floor"`` (Mesh TensorFlow);
            ``"ceil"`` (V-MoE, DeepSpeed, Megatron); ``"per_choice_ceil"``,
            ``choices * floor(factor * ceil(T / E))`` (Tutel, fairseq).
        multiple: round up to a multiple (V-MoE: 4).

    Raises:
        ValueError: naming the argument, if it is not a number that can be meant.
    """
    if not 0.0 <= factor < math.inf:
        raise ValueError(f"factor={factor!r}: expected a number that is not negative, and finite")
    for name, value in (("num_experts", num_experts), ("multiple", multiple)):
        if value < 1:
            raise ValueError(f"{name}={value!r}: expected at least 1")
    factor = min(factor, float(num_experts))  # room for every token: more would only overflow
    even = factor * num_tokens * choices / num_experts
    match rounding:
        case "round":
            wanted = round(even)
        case "floor":
            wanted = math.floor(even)
        case "ceil":
            wanted = math.ceil(even)
        case "per_choice_ceil":
            wanted = choices * math.floor(factor * math.ceil(num_tokens / num_experts))
        case _:
            raise ValueError(f"rounding={rounding!r}: expected 'round', 'floor', 'ceil', ...")
    bounded = max(wanted, min_capacity)
    return min(-(-bounded // multiple) * multiple, num_tokens)


def fits_capacity(
    expert_TK: Tensor,
    *,
    num_experts: int,
    capacity: int,
    order: str = "choice",
    gate_TK: Tensor | None = None,
) -> Tensor:
    """Which assignments find room when experts fill up in a given order.

    Args:
        expert_TK: (T, K) chosen experts, best first; negative for no assignment.
        num_experts: E.
        capacity: assignments that each expert takes.
        order: ``"token"``: all choices of a token, then those of the next one; causal.
            ``"choice"``: all first choices from left to right, then all second choices (Switch,
            GShard, ST-MoE); under a binding capacity a second choice waits for later tokens.
            ``"priority"``: the same, but tokens in descending order of their first gate
            (batch-prioritised routing, V-MoE). ``"gate"``: assignments in descending order of
            their own gate (DeepSpeed's and Megatron's ``probs``; Mesh's ``switch_max``). Equal
            gates are served from left to right.
        gate_TK: (T, K) gates, for the last two.

    Returns:
        (T, K) bool.

    Raises:
        ValueError: for another order, or shapes and dtypes that do not fit.
    """
    if order in ("priority", "gate") and gate_TK is None:
        raise ValueError(f"order={order!r} needs gate_TK")
    if order not in ("token", "choice", "priority", "gate"):
        raise ValueError(f"order={order!r}: expected 'token', 'choice', 'priority' or 'gate'")
    if expert_TK.ndim != 2 or expert_TK.is_floating_point() or expert_TK.dtype == torch.bool:
        raise ValueError(
            f"expert_TK is {expert_TK.dtype} of shape {tuple(expert_TK.shape)}; expected integers "
            "of shape (tokens, choices)"
        )
    if gate_TK is not None and gate_TK.shape != expert_TK.shape:
        raise ValueError(
            f"gate_TK has shape {tuple(gate_TK.shape)}; expected {tuple(expert_TK.shape)}"
        )
    num_tokens, k = expert_TK.shape
    match order:
        case "token":
            return _has_room(expert_TK.reshape(-1), num_experts, capacity).view(num_tokens, k)
        case "choice":
            fits_N = _has_room(expert_TK.T.reshape(-1), num_experts, capacity)
            return fits_N.view(k, num_tokens).T
        case "priority":
            turn_T = torch.argsort(gate_TK[:, 0], descending=True, stable=True)
            queue_N = expert_TK.index_select(0, turn_T).T.reshape(-1)
            fits_TK = _has_room(queue_N, num_experts, capacity).view(k, num_tokens).T
            return torch.empty_like(fits_TK).index_copy_(0, turn_T, fits_TK)
        case _:
            turn_N = torch.argsort(gate_TK.reshape(-1), descending=True, stable=True)
            queue_N = expert_TK.reshape(-1).index_select(0, turn_N)
            fits_N = _has_room(queue_N, num_experts, capacity)
            return torch.empty_like(fits_N).index_copy_(0, turn_N, fits_N).view(num_tokens, k)


def _has_room(queue_N: Tensor, num_experts: int, capacity: int) -> Tensor:
    """Which entries of a queue of experts are among the first ``capacity`` of their expert."""
    # Rank within an expert from one stable sort: no (N, E) running counts.
    behind_N = torch.where(queue_N < 0, num_experts, queue_N)  # no assignment: behind them all
    narrow_N = behind_N.to(narrowest_dtype(num_experts))
    order_N = stable_order(narrow_N, num_experts)
    start_E = group_offsets(behind_N, num_experts)  # not of narrow_N, where 257 may be expert 1
    sorted_N = narrow_N.index_select(0, order_N).int()
    position_N = torch.arange(queue_N.shape[0], device=queue_N.device, dtype=torch.int32)
    rank_N = position_N - start_E.index_select(0, sorted_N)
    fits_N = (rank_N < capacity) & (sorted_N < num_experts)
    return torch.empty_like(fits_N).index_copy_(0, order_N, fits_N)
