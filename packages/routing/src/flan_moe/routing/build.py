"""From a list of (token, expert, weight, keep) assignments to a `Routing`.

Shape suffixes: T tokens, E experts, N assignments (kept or not), R rows (kept assignments).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flan_moe.routing.contract import Routing
from flan_moe.routing.statistics import routing_statistics


def build_routing(
    *,
    token_N: Tensor,
    expert_N: Tensor,
    weight_N: Tensor,
    keep_N: Tensor | None,
    logits_TE: Tensor,
    losses: Mapping[str, Tensor],
) -> Routing:
    """Sort the kept assignments by expert, then token, and index them both ways.

    The order of the list does not matter, and memory is O(N + T + E): there is no (T, E, C)
    dispatch tensor. On CPU the rows are trimmed to the kept ones. On other devices R = N, because
    trimming would make the host wait for the device; rows past ``expert_offsets[-1]`` then have
    weight zero and an unspecified, valid token.

    Args:
        token_N: (N,) integer, the token of each assignment.
        expert_N: (N,) integer, the expert of each assignment (any value where not kept).
        weight_N: (N,) float32, the combine weight; gradients flow through it.
        keep_N: (N,) bool, or None to keep all.
        logits_TE: (T, E) float32, from which T, E and the statistics come.
        losses: unweighted auxiliary losses, passed on.

    Returns:
        The routing, satisfying `Routing.validate` if no (token, expert) pair is listed twice.
    """
    num_tokens, num_experts = logits_TE.shape
    device = logits_TE.device
    # One integer orders the assignments; those not kept sort behind every expert.
    key_N = expert_N.long() * num_tokens + token_N
    if keep_N is not None:
        key_N = torch.where(keep_N, key_N, num_experts * num_tokens)
    sorted_N, order_N = torch.sort(key_N, stable=True)
    experts = torch.arange(num_experts + 1, device=device)
    expert_offsets = torch.searchsorted(sorted_N, experts * num_tokens)
    if device.type == "cpu":
        order_N = order_N[: int(expert_offsets[-1])]
    row_token_R = token_N[order_N]
    row_weight_R = weight_N[order_N]
    owner_R = row_token_R
    if device.type != "cpu" and keep_N is not None:
        kept_R = keep_N[order_N]
        row_weight_R = row_weight_R.masked_fill(~kept_R, 0.0)
        owner_R = torch.where(kept_R, row_token_R, num_tokens)
    owner_sorted_R, token_row_R = torch.sort(owner_R, stable=True)
    tokens = torch.arange(num_tokens + 1, device=device)
    token_offsets = torch.searchsorted(owner_sorted_R, tokens)
    expert_offsets, token_offsets = expert_offsets.int(), token_offsets.int()
    return Routing(
        row_token_R=row_token_R.int(),
        row_weight_R=row_weight_R,
        expert_offsets=expert_offsets,
        token_offsets=token_offsets,
        token_row_R=token_row_R.int(),
        losses=dict(losses),
        stats=routing_statistics(
            logits_TE=logits_TE, expert_offsets=expert_offsets, token_offsets=token_offsets
        ),
    )
