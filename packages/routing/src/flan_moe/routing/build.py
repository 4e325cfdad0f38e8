"""From a list of (token, expert, weight, keep) assignments to a `Routing`.

Shape suffixes: T tokens, E experts, N assignments (kept or not), R rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from flan_moe.routing.contract import Routing
from flan_moe.routing.on_demand import OnDemand
from flan_moe.routing.order import group_offsets, narrowest_dtype, stable_order
from flan_moe.routing.statistics import load_statistics

# Up to here the calls into torch would cost more than the work they do.
_FEW_ASSIGNMENTS = 32
_FEW_GROUPS = 256


def build_routing(
    *,
    token_N: Tensor,
    expert_N: Tensor,
    weight_N: Tensor,
    keep_N: Tensor | None = None,
    num_tokens: int,
    num_experts: int,
    losses: Mapping[str, Tensor],
    stats: Mapping[str, Tensor],
    trim: bool | None = None,
) -> Routing:
    """Sort the kept assignments by expert, then token, and index them both ways.

    The order of the list does not matter, and memory is O(N + T + E): there is no (T, E, C)
    dispatch tensor. A list in the order of its tokens, as token choice makes it, is faster
    when trimming. On a GPU, untrimmed, Triton kernels do it where triton is installed, with the
    same result to the bit.

    Args:
        token_N: (N,) integer, the token of each assignment.
        expert_N: (N,) integer, the expert of each assignment (any value where not kept).
        weight_N: (N,) float32, the combine weight; gradients flow through it.
        keep_N: (N,) bool, or None to keep all.
        num_tokens: T.
        num_experts: E.
        losses: unweighted auxiliary losses, passed on.
        stats: detached measurements, passed on together with those of `load_statistics`; what is
            `OnDemand` stays so.
        trim: whether R is the number of kept assignments, which the host must then wait for, or
            N, a bound. None: trim on CPU, where there is nothing to wait for, except while a graph
            is captured by torch.compile. Without trimming,
            rows past ``expert_offsets[-1]`` have weight zero and a valid but meaningless token.

    Returns:
        The routing; it satisfies `Routing.validate` if no kept (token, expert) pair is repeated.
    """
    if trim is None:
        trim = token_N.device.type == "cpu" and not torch.compiler.is_compiling()
    index_rows = _triton_index_rows() if token_N.device.type == "cuda" and not trim else None
    order_R, row_token_R, expert_offsets, token_offsets, token_row_R = (
        _index_rows(token_N, expert_N, keep_N, num_tokens, num_experts, trim=trim)
        if index_rows is None
        else index_rows(token_N, expert_N, keep_N, num_tokens, num_experts)
    )
    row_weight_R = weight_N.index_select(0, order_R)
    if keep_N is not None and not trim:
        row_R = torch.arange(order_R.shape[0], device=order_R.device)
        row_weight_R = row_weight_R.masked_fill(row_R >= expert_offsets[-1], 0.0)
    all_stats = partial(_all_stats, expert_offsets, token_offsets, stats)
    return Routing(
        row_token_R=row_token_R,
        row_weight_R=row_weight_R,
        expert_offsets=expert_offsets,
        token_offsets=token_offsets,
        token_row_R=token_row_R,
        losses=losses if isinstance(losses, OnDemand) else dict(losses),
        stats=OnDemand(all_stats) if isinstance(stats, OnDemand) else all_stats(),
    )


def _all_stats(
    expert_offsets: Tensor, token_offsets: Tensor, stats: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    return {**load_statistics(expert_offsets, token_offsets), **stats}  # torch.compile has no |


def _triton_index_rows() -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] | None:
    try:  # here and not at the top: importing the package must not import triton
        from flan_moe.routing.triton_build import index_rows
    except ImportError:
        return None
    return index_rows


def _index_rows(
    token_N: Tensor,
    expert_N: Tensor,
    keep_N: Tensor | None,
    num_tokens: int,
    num_experts: int,
    *,
    trim: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The assignment of each row, then `Routing`'s four integer fields in their order."""
    few = token_N.shape[0] <= _FEW_ASSIGNMENTS and max(num_tokens, num_experts) <= _FEW_GROUPS
    if trim and few and token_N.device.type == "cpu":
        return _index_few_rows(token_N, expert_N, keep_N, num_tokens, num_experts)
    owner_N = token_N
    if keep_N is not None:
        expert_N = torch.where(keep_N, expert_N, num_experts)  # behind every expert
        owner_N = torch.where(keep_N, token_N, num_tokens)
    expert_offsets = group_offsets(expert_N, num_experts)  # before 257 is narrowed to expert 1
    chosen_N = expert_N.to(narrowest_dtype(num_experts))
    token_offsets = group_offsets(owner_N, num_tokens)
    count, ordered, single = token_N.shape[0], False, False
    if trim:
        # What the host waits for, in one number: how many rows there are, and two properties of
        # token choice that save work, tokens in order and at most one row each.
        rises = (token_N[1:] >= token_N[:-1]).all()
        alone = (token_offsets.diff() <= 1).all()
        facts = int(expert_offsets[-1].long() * 4 + rises * 2 + alone)
        count, ordered, single = facts >> 2, bool(facts & 2), bool(facts & 1)

    bound = num_experts if ordered else num_experts * num_tokens
    key_N = chosen_N
    if not ordered:
        dtype = narrowest_dtype(bound)
        key_N = chosen_N.to(dtype) * num_tokens + token_N.to(dtype)
        key_N = key_N if keep_N is None else torch.where(keep_N, key_N, bound)
    order_R = stable_order(key_N, bound)[:count]
    row_token_R = token_N.index_select(0, order_R).int()
    if single:  # a token's offset is the place of its row: nothing to sort
        place_R = token_offsets.index_select(0, row_token_R).long()
        row_R = torch.arange(count, dtype=torch.int32, device=order_R.device)
        token_row_R = torch.empty_like(row_R).scatter_(0, place_R, row_R)
    else:
        owner_R = row_token_R if trim else owner_N.index_select(0, order_R)
        token_row_R = stable_order(owner_R, num_tokens).int()
    return order_R, row_token_R, expert_offsets, token_offsets, token_row_R


def _index_few_rows(
    token_N: Tensor,
    expert_N: Tensor,
    keep_N: Tensor | None,
    num_tokens: int,
    num_experts: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same as `_index_rows`, trimmed, in plain Python: for a step of a generation."""
    tokens, experts = token_N.tolist(), expert_N.tolist()
    kept = range(len(tokens))
    if keep_N is not None:
        kept = [n for n, is_kept in enumerate(keep_N.tolist()) if is_kept]
    per_expert, per_token = [0] * num_experts, [0] * num_tokens
    for n in kept:
        if not 0 <= experts[n] < num_experts:
            raise RuntimeError(f"index {experts[n]} is out of bounds for {num_experts} experts")
        per_expert[experts[n]] += 1
        per_token[tokens[n]] += 1
    order = sorted(kept, key=lambda n: (experts[n], tokens[n]))
    row_token = [tokens[n] for n in order]
    index = (
        row_token,
        list(accumulate(per_expert, initial=0)),
        list(accumulate(per_token, initial=0)),
        sorted(range(len(order)), key=row_token.__getitem__),
    )
    return torch.tensor(order, dtype=torch.int64), *(
        torch.tensor(numbers, dtype=torch.int32) for numbers in index
    )
