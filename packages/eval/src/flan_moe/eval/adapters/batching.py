"""Grouping sequences into batches that hold a bounded number of padded tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def token_budget_batches(
    lengths: Sequence[int],
    *,
    token_budget: int,
    max_rows: int,
    copies: Sequence[int] | None = None,
) -> list[list[int]]:
    """Partition sequences into batches of similar length, longest first.

    Args:
        lengths: Tokens of each sequence.
        token_budget: Rows times the longest row of a batch stay within it, unless a single
            sequence is over it.
        max_rows: Rows per batch at most, with the same exception.
        copies: Rows that each sequence becomes; one each if None.

    Returns:
        Batches of indices; every index is in exactly one.
    """
    copies = copies if copies is not None else [1] * len(lengths)
    batches: list[list[int]] = []
    longest = rows = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        rows += copies[index]
        # Lengths fall, so the first sequence of a batch is its longest.
        if not batches or rows * longest > token_budget or rows > max_rows:
            batches.append([])
            longest, rows = lengths[index], copies[index]
        batches[-1].append(index)
    return batches


def pad(
    sequences: Sequence[Sequence[int]], *, value: int, device: torch.device, left: bool = False
) -> tuple[Tensor, Tensor]:
    """Stack sequences into one tensor.

    Args:
        sequences: Token ids of each row, none empty.
        value: Id of the padding.
        device: Where the tensors go.
        left: Pad on the left instead of the right.

    Returns:
        Ids and mask (1 for a token, 0 for padding), both (rows, longest) int64.
    """
    longest = max(len(sequence) for sequence in sequences)
    ids = torch.full((len(sequences), longest), value, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        where = slice(longest - len(sequence), None) if left else slice(0, len(sequence))
        ids[row, where] = torch.tensor(sequence, dtype=torch.long)
        mask[row, where] = 1
    return ids.to(device), mask.to(device)
