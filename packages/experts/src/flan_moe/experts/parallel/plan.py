"""Which rank owns which expert, which rows go where, and where received rows belong.

Shape suffixes: N ranks of the group, E experts, L experts of one rank (at most), T tokens and R
rows of this rank, S rows received by it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, distributed

from flan_moe.experts.backend import RowIndex
from flan_moe.experts.parallel.exchange import Traffic
from flan_moe.routing import Routing


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One exchange of rows, from the side of one rank.

    Attributes:
        traffic: rows sent and received.
        home: the rows of this rank's routing, without those past the true count.
        away: the received rows by this rank's experts. Each is a token of its own, numbered in
            the order of arrival: by rank, then by expert, then by token.
    """

    traffic: Traffic
    home: RowIndex
    away: RowIndex


def owned_experts(num_experts: int, ranks: int, rank: int) -> range:
    """The experts of a rank, by the rule of ``torch.chunk`` and of DTensor's ``Shard(0)``.

    Every rank has ``ceil(num_experts / ranks)``, except that the last ones may have fewer or none.
    """
    share = -(-num_experts // ranks)
    return range(min(rank * share, num_experts), min((rank + 1) * share, num_experts))


def plan_exchange(routing: Routing, group: distributed.ProcessGroup) -> Plan:
    """Exchange the row counts of all experts; a collective over the group.

    The host waits for the device once: it must know how many rows come.
    """
    ranks, rank = group.size(), group.rank()
    num_experts = routing.num_experts
    share = len(owned_experts(num_experts, ranks, 0))
    owned = len(owned_experts(num_experts, ranks, rank))

    sent_NL = F.pad(routing.expert_offsets.diff(), (0, ranks * share - num_experts))
    received_NL = torch.empty_like(sent_NL)
    distributed.all_to_all_single(received_NL, sent_NL, group=group)
    sent_NL, received_NL = sent_NL.view(ranks, share), received_NL.view(ranks, share)
    send, receive = torch.stack((sent_NL.sum(1), received_NL.sum(1))).tolist()

    rows = sum(send)
    return Plan(
        traffic=Traffic(send=send, receive=receive, group=group),
        home=RowIndex(
            row_token_R=routing.row_token_R[:rows],
            expert_offsets=routing.expert_offsets,
            token_offsets=routing.token_offsets,
            token_row_R=routing.token_row_R[:rows],
        ),
        away=_index_received(received_NL[:, :owned], sum(receive)),
    )


def _index_received(count_NL: Tensor, rows: int) -> RowIndex:
    """Index received rows by expert.

    They come as one block for each rank and expert, by rank and then by expert, and are wanted by
    expert and then by rank. So there is nothing to sort: a block moves as a whole.
    """
    count_LN = count_NL.T.contiguous()
    arrival_NL = _starts(count_NL)
    wanted_LN = _starts(count_LN)
    moves_NL = wanted_LN.T - arrival_NL
    position_S = torch.arange(rows + 1, dtype=torch.int32, device=count_NL.device)
    return RowIndex(
        row_token_R=position_S[:-1] - _spread(moves_NL.T, count_LN, rows),
        expert_offsets=F.pad(count_NL.sum(0).cumsum(0), (1, 0)).int(),
        token_offsets=position_S,
        token_row_R=position_S[:-1] + _spread(moves_NL, count_NL, rows),
    )


def _starts(count: Tensor) -> Tensor:
    """Where each block starts if all are laid out in order."""
    return (count.flatten().cumsum(0) - count.flatten()).view(count.shape)


def _spread(value: Tensor, count: Tensor, rows: int) -> Tensor:
    """The value of a block, int32, for each of its rows."""
    return torch.repeat_interleave(value.int().flatten(), count.flatten(), output_size=rows)
