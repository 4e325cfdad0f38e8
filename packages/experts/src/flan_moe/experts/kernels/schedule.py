"""Which tile of rows belongs to which expert: a table made on the device, in one launch.

A tile is up to ``block_m`` consecutive rows of one expert. The host knows only a bound on how many
there are; the table holds the true number, and kernels read it there.

Shape suffixes: E experts, M row tiles (allocated at the bound).
"""

# ruff: noqa: ANN001, ANN201, ANN202 - what a kernel takes is annotated by Triton alone

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 32
_BLOCK_E = 128


class TileTable(NamedTuple):
    """The tiles of rows, expert by expert; entries past ``count`` are undefined.

    Attributes:
        expert_M: (M,) int32, whose rows a tile holds.
        row_M: (M,) int32, the first of its rows; the last is ``block_m`` - 1 further, or the
            expert's last.
        count: (1,) int32, the true number of tiles.
        block_m: rows of a full tile.
    """

    expert_M: Tensor
    row_M: Tensor
    count: Tensor
    block_m: int

    @property
    def bound(self) -> int:
        """What the host knows: no more tiles than this."""
        return self.expert_M.shape[0]


def compiled() -> bool:
    """Whether kernels are compiled for a device, rather than run by Triton's interpreter."""
    return isinstance(_fill, triton.JITFunction)


def tile_bound(rows: int, experts: int, block_m: int) -> int:
    """The most tiles that ``rows`` rows of ``experts`` experts can make.

    Each expert that has rows wastes at most ``block_m - 1`` places of its last tile.
    """
    return (rows + min(experts, rows) * (block_m - 1)) // block_m


def tile_table(expert_offsets: Tensor, rows: int, block_m: int) -> TileTable:
    """The table for tiles of ``block_m`` rows.

    Args:
        expert_offsets: (E+1,) int32, as in `flan_moe.routing.Routing`.
        rows: R, at least ``expert_offsets[-1]``.
        block_m: rows of a full tile.
    """
    experts = expert_offsets.shape[0] - 1
    bound = tile_bound(rows, experts, block_m)
    expert_M, row_M = expert_offsets.new_empty(bound), expert_offsets.new_empty(bound)
    count = expert_offsets.new_empty(1)
    _fill[(max(1, triton.cdiv(bound, _BLOCK)),)](
        expert_offsets,
        expert_M,
        row_M,
        count,
        experts,
        BLOCK_M=block_m,
        BLOCK=_BLOCK,
        BLOCK_E=_BLOCK_E,
    )
    return TileTable(expert_M, row_M, count, block_m)


@triton.jit
def _fill(
    expert_offsets,
    expert_M,
    row_M,
    count,
    num_experts,
    BLOCK_M: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Grid (M / BLOCK). A tile's expert is the number of experts whose tiles end before it."""
    tile = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    expert = tl.zeros((BLOCK,), dtype=tl.int32)
    first_tile = tl.zeros((BLOCK,), dtype=tl.int32)
    total = tl.zeros((), dtype=tl.int32)
    for e0 in range(0, num_experts, BLOCK_E):
        e = e0 + tl.arange(0, BLOCK_E)
        there = e < num_experts
        begin = tl.load(expert_offsets + e, mask=there, other=0)
        end = tl.load(expert_offsets + e + 1, mask=there, other=0)
        tiles = (end - begin + BLOCK_M - 1) // BLOCK_M
        last = total + tl.cumsum(tiles, axis=0)
        before = there[None, :] & (last[None, :] <= tile[:, None])
        expert += tl.sum(before.to(tl.int32), axis=1)
        first_tile = tl.maximum(first_tile, tl.max(tl.where(before, last[None, :], 0), axis=1))
        total += tl.sum(tiles, axis=0)
    real = tile < total
    begin = tl.load(expert_offsets + expert, mask=real, other=0)
    tl.store(expert_M + tile, expert, mask=real)
    tl.store(row_M + tile, begin + (tile - first_tile) * BLOCK_M, mask=real)
    if tl.program_id(0) == 0:
        tl.store(count, total)


@triton.jit
def locate(tile, row_tiles, column_tiles, GROUP_M: tl.constexpr):
    """The row tile and column tile of the ``tile``-th piece of work.

    Column by column within groups of ``GROUP_M`` row tiles, so that the programs that run at the
    same time read the same columns of a weight.
    """
    per_group = GROUP_M * column_tiles
    first = tile // per_group * GROUP_M
    height = tl.minimum(row_tiles - first, GROUP_M)
    within = tile % per_group
    return first + within % height, within // height
