"""Selection: which experts a token prefers, which tokens an expert prefers.

Ties go to the lowest index on every device: `torch.topk` promises no order among equals, a
stable sort and `argmax` do.

Shape suffixes: T tokens, E experts, K choices per token, C tokens per expert, G groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ARGMAX_UP_TO = 4
"""Choices that are cheaper found one after the other than by sorting all experts."""


def preferred_experts(scores_TE: Tensor, k: int) -> Tensor:
    """The k experts with the highest score for each token, best first.

    Args:
        scores_TE: (T, E) scores; detached, they decide and carry no gradient.
        k: choices per token, at most E.

    Returns:
        (T, K) int64; ties go to the expert with the lowest index.
    """
    if k > _ARGMAX_UP_TO:
        return torch.sort(scores_TE, dim=-1, descending=True, stable=True).indices[:, :k]
    if k > 1:
        # Only a chosen expert is at minus infinity below: one that was there before, such as one
        # that a subclass rules out, would tie with it, and be chosen twice.
        scores_TE = scores_TE.clamp(min=torch.finfo(scores_TE.dtype).min)
    choices = [scores_TE.argmax(dim=-1, keepdim=True)]  # documented to return the first maximum
    while len(choices) < k:
        scores_TE = scores_TE.scatter(-1, choices[-1], -torch.inf)
        choices.append(scores_TE.argmax(dim=-1, keepdim=True))
    return torch.cat(choices, dim=-1)


def preferred_tokens(scores_TE: Tensor, capacity: int) -> Tensor:
    """The tokens with the highest score for each expert, in their own order.

    Source: Expert Choice (Zhou et al. 2022, section 3.2).

    Args:
        scores_TE: (T, E) scores, normalised over experts.
        capacity: C, tokens per expert, at most T.

    Returns:
        (E, C) int64; ties go to the token with the lowest index.
    """
    # Not a full sort: the C-th score is a threshold, and of those that equal it the first few fill
    # the expert. NaN compares with nothing; it counts as the highest, as in a sort.
    scores_ET = scores_TE.T.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    num_experts, num_tokens = scores_ET.shape
    if capacity == 0:
        return torch.zeros(num_experts, 0, dtype=torch.int64, device=scores_TE.device)
    threshold_E1 = scores_ET.topk(capacity, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
    above_ET, equal_ET = scores_ET > threshold_E1, scores_ET == threshold_E1
    room_E1 = capacity - above_ET.sum(dim=-1, keepdim=True)
    chosen_ET = above_ET | (equal_ET & (equal_ET.cumsum(dim=-1, dtype=torch.int32) <= room_E1))
    # Where each goes in its expert's list; the others go to a place behind it, which is cut off.
    place_ET = torch.where(chosen_ET, chosen_ET.cumsum(dim=-1, dtype=torch.int32) - 1, capacity)
    token_ET = torch.arange(num_tokens, device=scores_TE.device).expand(num_experts, -1)
    list_EC = token_ET.new_zeros(num_experts, capacity + 1)
    return list_EC.scatter_(-1, place_ET.long(), token_ET)[:, :capacity]


def within_best_groups(scores_TE: Tensor, *, num_groups: int, top_groups: int) -> Tensor:
    """Scores with the experts of all but the best groups at minus infinity.

    A group is worth the sum of its two best experts; ties go to the group with the lowest index.
    Source: DeepSeek-V3 (node-limited routing).

    Args:
        scores_TE: (T, E), experts of a group side by side.
        num_groups: G, a divisor of E.
        top_groups: groups that a token may choose from.
    """
    tokens, experts = scores_TE.shape
    scores_TGM = scores_TE.view(tokens, num_groups, experts // num_groups)
    worth_TG = scores_TGM.topk(2, dim=-1).values.sum(dim=-1)
    best_TG = preferred_experts(worth_TG, top_groups)
    lost_TG = torch.ones_like(worth_TG, dtype=torch.bool).scatter_(-1, best_TG, False)
    return scores_TGM.masked_fill(lost_TG.unsqueeze(-1), -torch.inf).view(tokens, experts)


def round_robin(num_tokens: int, num_experts: int, k: int, *, device: torch.device) -> Tensor:
    """(T, K) experts in turn: every expert gets T * K / E assignments, give or take one."""
    slot_N = torch.arange(num_tokens * k, device=device)
    return (slot_N % num_experts).view(num_tokens, k)


def hashed_experts(*, vocab_size: int, num_experts: int, k: int, seed: int) -> Tensor:
    """A fixed random table of k different experts for each token id, balanced over the ids.

    The first expert of the ids is a random balanced assignment; the others follow at a random
    stride that is coprime to E, so that no id names an expert twice. Source: the balanced random
    hash of Hash layers (Roller et al. 2021); DeepSeek-V4 uses a table of this form.

    Returns:
        (vocab_size, K) int64, on the CPU; the same for the same arguments everywhere.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    with torch.device("cpu"):  # also while a model is made on the meta device
        first_V = torch.randperm(vocab_size, generator=generator) % num_experts
        numbers_E = torch.arange(num_experts)
        strides = numbers_E[torch.gcd(numbers_E, torch.tensor(num_experts)) == 1]
        pick_V = torch.randint(len(strides), (vocab_size,), generator=generator)
        return (first_V[:, None] + strides[pick_V][:, None] * torch.arange(k)) % num_experts
