"""From a list of (token, expert, weight, keep) assignments to a `Routing`.

Shape suffixes: T tokens, E experts, N assignments (kept or not), R rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flan_moe.routing.contract import Routing
from flan_moe.routing.statistics import load_statistics


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
    dispatch tensor.

    Args:
        token_N: (N,) integer, the token of each assignment.
        expert_N: (N,) integer, the expert of each assignment (any value where not kept).
        weight_N: (N,) float32, the combine weight; gradients flow through it.
        keep_N: (N,) bool, or None to keep all.
        num_tokens: T.
        num_experts: E.
        losses: unweighted auxiliary losses, passed on.
        stats: detached measurements, passed on together with those of `load_statistics`.
        trim: whether R is the number of kept assignments, which the host must then wait for, or
            N, a bound. None: trim on CPU, where there is nothing to wait for, except while a graph
            is captured by torch.compile. Without trimming,
            rows past ``expert_offsets[-1]`` have weight zero and a valid but meaningless token.

    Returns:
        The routing; it satisfies `Routing.validate` if no kept (token, expert) pair is repeated.
    """
    device = token_N.device
    if trim is None:
        trim = device.type == "cpu" and not torch.compiler.is_compiling()
    # One integer orders the assignments; those not kept sort behind every expert.
    key_N = expert_N.long() * num_tokens + token_N
    if keep_N is not None:
        key_N = torch.where(keep_N, key_N, num_experts * num_tokens)
    sorted_N, order_R = torch.sort(key_N, stable=True)
    expert_offsets = torch.searchsorted(
        sorted_N, torch.arange(num_experts + 1, device=device) * num_tokens
    )
    if trim:
        order_R = order_R[: int(expert_offsets[-1])]
    row_token_R = token_N.index_select(0, order_R)
    row_weight_R = weight_N.index_select(0, order_R)
    owner_R = row_token_R
    if keep_N is not None and not trim:
        kept_R = keep_N.index_select(0, order_R)
        row_weight_R = row_weight_R.masked_fill(~kept_R, 0.0)
        owner_R = torch.where(kept_R, row_token_R, num_tokens)
    sorted_owner_R, token_row_R = torch.sort(owner_R, stable=True)
    token_offsets = torch.searchsorted(
        sorted_owner_R, torch.arange(num_tokens + 1, device=device, dtype=owner_R.dtype)
    )
    expert_offsets, token_offsets = expert_offsets.int(), token_offsets.int()
    return Routing(
        row_token_R=row_token_R.int(),
        row_weight_R=row_weight_R,
        expert_offsets=expert_offsets,
        token_offsets=token_offsets,
        token_row_R=token_row_R.int(),
        losses=dict(losses),
        stats={**load_statistics(expert_offsets, token_offsets), **stats},
    )
