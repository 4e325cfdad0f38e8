"""T5's relative position bias.

Shape suffixes: H heads, L query positions, S key positions, N relative distances, U buckets.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def relative_position_bucket(
    distance: Tensor, *, bidirectional: bool, num_buckets: int, max_distance: int
) -> Tensor:
    """Bucket of each relative distance (key position minus query position).

    Half of the buckets hold one distance each, the other half grow logarithmically up to
    ``max_distance``, beyond which everything shares the last one. Bidirectional attention splits
    the buckets between the two signs; otherwise keys after the query count as distance 0.
    As in Raffel et al. 2020, section 2.1, and Mesh TensorFlow, rounding included.

    Args:
        distance: integer tensor of any shape.
        bidirectional: False for causal attention.
        num_buckets: U.
        max_distance: where the last bucket begins to be shared.

    Returns:
        int64 of the same shape, in [0, num_buckets).
    """
    if bidirectional:
        num_buckets //= 2
        offset = (distance > 0).long() * num_buckets
        distance = distance.abs()
    else:
        offset = torch.zeros_like(distance)
        distance = -distance.clamp(max=0)
    exact = num_buckets // 2
    log_ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = exact + (log_ratio * (num_buckets - exact)).long()
    return offset + torch.where(distance < exact, distance, far.clamp(max=num_buckets - 1))


class RelativePositionBias(nn.Module):
    """A learned bias per head and bucket, made once per forward and shared by a stack's layers.

    Positions are indices within a row. Inside one sequence of a packed row their differences are
    the differences within the sequence, which is all that this bias looks at.

    Args:
        num_heads: H.
        num_buckets: U.
        max_distance: see `relative_position_bucket`.
        bidirectional: True in an encoder.

    Attributes:
        weight: (U, H) parameter.
    """

    def __init__(
        self, *, num_heads: int, num_buckets: int, max_distance: int, bidirectional: bool
    ) -> None:
        super().__init__()
        self.bidirectional = bidirectional
        self.max_distance = max_distance
        self.weight = nn.Parameter(torch.empty(num_buckets, num_heads))

    def forward(self, query_length: int, key_length: int) -> Tensor:
        """The bias of the last ``query_length`` of ``key_length`` positions, (1, H, L, S).

        Only L + S - 1 different distances occur, so buckets and weights are looked up once per
        distance and laid out along diagonals.
        """
        distance_N = torch.arange(1 - key_length, query_length, device=self.weight.device)
        bucket_N = relative_position_bucket(
            distance_N,
            bidirectional=self.bidirectional,
            num_buckets=self.weight.shape[0],
            max_distance=self.max_distance,
        )
        # Contiguous twice: the fused attention of CPUs refuses other results, and from contiguous
        # distances a square one is contiguous at once.
        bias_HN = F.embedding(bucket_N, self.weight).T.contiguous()
        # Window w holds the distances w - (S - 1) .. w, which are those of query L - 1 - w.
        return bias_HN.unfold(1, key_length, 1).flip(1)[None].contiguous()
