"""Sorting small integers: the one expensive step of turning choices into rows.

Shape suffixes: N keys, G groups.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# On CPU torch sorts integers by radix from this many keys up, and by comparison below.
_RADIX_KEYS = 32_768


def narrowest_dtype(bound: int) -> torch.dtype:
    """The smallest integer dtype that holds 0 .. ``bound``; a radix sort's cost is in the bytes."""
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if bound <= torch.iinfo(dtype).max:
            return dtype
    return torch.int64


def stable_order(key_N: Tensor, bound: int) -> Tensor:
    """The stable ascending order of integer keys, without waiting for the device.

    Args:
        key_N: (N,) integers in 0 .. ``bound``, any integer dtype.
        bound: the largest possible key, known to the host.

    Returns:
        (N,) int64: ``key_N[order]`` is sorted, equal keys in their order in the list.
    """
    key_N = key_N.to(narrowest_dtype(bound))
    count = key_N.shape[0]
    short = key_N.device.type == "cpu" and _RADIX_KEYS // 4 <= count < _RADIX_KEYS
    if short and key_N.element_size() <= 2:
        # Sorting a few more small keys by radix costs a fraction of sorting these by comparison.
        # The padding stays last: nothing is larger, and equals keep their order.
        largest = torch.iinfo(key_N.dtype).max
        key_N = F.pad(key_N, (0, _RADIX_KEYS - count), value=largest)
    return torch.sort(key_N, stable=True).indices[:count]


def group_offsets(group_N: Tensor, num_groups: int) -> Tensor:
    """Where each group starts once the list is sorted by group.

    Args:
        group_N: (N,) integers in 0 .. ``num_groups``; ``num_groups`` itself means no group.
        num_groups: G.

    Returns:
        (G+1,) int32; the last entry is the number of list entries in a group.
    """
    count_G = torch.zeros(num_groups + 1, dtype=torch.int32, device=group_N.device)
    # Sums of integer ones: the same in whatever order a device adds them.
    one_N = count_G.new_ones(()).expand(group_N.shape[0])
    return exclusive_sum(count_G.scatter_add_(0, group_N.long(), one_N)[:-1])


def exclusive_sum(count_G: Tensor) -> Tensor:
    """(G,) int32 counts to their (G+1,) int32 running total, from 0 to the sum of all."""
    return F.pad(count_G.cumsum(0, dtype=torch.int32), (1, 0))
