"""Triton kernels that sort assignments into rows, without waiting for the device.

A counting sort, twice. First the kept assignments go to their tokens: each token's are counted,
put side by side, and ranked by expert. Read in that order (a token's experts ascending), a stable
counting sort by expert gives the rows, and each entry's row is the token side of the index.

Atomics only add integers. What order they ran in shows in nothing but the scratch order of one
token's assignments, which the ranking by expert removes: results are the same bits on every run,
and the same as the torch path's. An assignment of a token or expert that does not exist counts as
not kept, so that nothing is read or written out of bounds.

Importing this module imports triton; `flan_moe.routing.build` does so for CUDA tensors only.

Shape suffixes: T tokens, E experts, N assignments (kept or not), P kept assignments in token-major
order (allocated N long), B blocks of P.
"""

# ruff: noqa: ANN001, ANN202 - what a kernel takes is annotated by Triton alone

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from flan_moe.routing.order import exclusive_sum

_BLOCK = 256
_CHUNK = 16


@torch.library.custom_op("flan_moe::index_rows", mutates_args=())
def index_rows(
    token_N: Tensor,
    expert_N: Tensor,
    keep_N: Tensor | None,
    num_tokens: int,
    num_experts: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The assignment of each row, then `Routing`'s four integer fields in their order.

    Args:
        token_N: (N,) integer.
        expert_N: (N,) integer.
        keep_N: (N,) bool, or None to keep all.
        num_tokens: T.
        num_experts: E.

    Returns:
        ``order_R`` (N,), ``row_token_R`` (N,), ``expert_offsets`` (E+1,), ``token_offsets``
        (T+1,) and ``token_row_R`` (N,), all int32. Rows past ``expert_offsets[-1]`` are the
        assignments that are not kept, in the order of the list.
    """
    with torch.cuda.device_of(token_N):  # triton launches on the current device
        return _index_rows(token_N, expert_N, keep_N, num_tokens, num_experts)


@index_rows.register_fake
def _(
    token_N: Tensor,
    expert_N: Tensor,
    keep_N: Tensor | None,
    num_tokens: int,
    num_experts: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    count = token_N.shape[0]
    sizes = (count, count, num_experts + 1, num_tokens + 1, count)
    return tuple(token_N.new_empty(size, dtype=torch.int32) for size in sizes)


def _index_rows(
    token_N: Tensor,
    expert_N: Tensor,
    keep_N: Tensor | None,
    num_tokens: int,
    num_experts: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    count = token_N.shape[0]
    order_R, row_token_R, token_row_R, slot_N, scratch_P, sorted_P = (
        token_N.new_empty(count, dtype=torch.int32) for _ in range(6)
    )
    if count == 0:
        zeros = (token_N.new_zeros(n + 1, dtype=torch.int32) for n in (num_experts, num_tokens))
        return order_R, row_token_R, *zeros, token_row_R
    token_N, expert_N = token_N.contiguous(), expert_N.contiguous()
    keep_N = None if keep_N is None else keep_N.contiguous()
    grid = (triton.cdiv(count, _BLOCK),)

    count_T = token_N.new_zeros(num_tokens, dtype=torch.int32)
    _count_tokens[grid](
        token_N, expert_N, keep_N, slot_N, count_T, count, num_tokens, num_experts, _BLOCK
    )
    token_offsets = exclusive_sum(count_T)
    dropped_N = (slot_N < 0).cumsum(0, dtype=torch.int32)
    _place_in_token[grid](
        token_N,
        slot_N,
        dropped_N,
        token_offsets,
        scratch_P,
        order_R,
        row_token_R,
        token_row_R,
        count,
        num_tokens,
        _BLOCK,
    )
    # Blocks are longer where experts are many: the (expert, block) counts are O(N + E).
    block_rows = min(max(triton.next_power_of_2(num_experts), 128), 1024)
    num_blocks = triton.cdiv(count, block_rows)
    count_EB = token_N.new_zeros(num_experts * num_blocks, dtype=torch.int32)
    _rank_in_token[grid](
        token_N,
        expert_N,
        token_offsets,
        scratch_P,
        sorted_P,
        count_EB,
        num_tokens,
        num_blocks,
        block_rows,
        _BLOCK,
    )
    start_EB = exclusive_sum(count_EB)
    _place_rows[(num_blocks,)](
        token_N,
        expert_N,
        token_offsets,
        sorted_P,
        start_EB,
        order_R,
        row_token_R,
        token_row_R,
        num_tokens,
        num_blocks,
        block_rows,
        _CHUNK,
        num_warps=max(4, block_rows // 128),
    )
    expert_offsets = start_EB[::num_blocks].clone()
    return order_R, row_token_R, expert_offsets, token_offsets, token_row_R


@triton.jit
def _count_tokens(
    token_N,
    expert_N,
    keep_N,
    slot_N,
    count_T,
    count,
    num_tokens,
    num_experts,
    BLOCK: tl.constexpr,
):
    """Grid (N / BLOCK). Count each token's kept assignments; slot: some place among them, or -1."""
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = n < count
    token = tl.load(token_N + n, mask=inside, other=-1).to(tl.int64)
    expert = tl.load(expert_N + n, mask=inside, other=-1).to(tl.int64)
    kept = inside & (token >= 0) & (token < num_tokens) & (expert >= 0) & (expert < num_experts)
    if keep_N is not None:
        kept = kept & (tl.load(keep_N + n, mask=inside, other=0) != 0)
    slot = tl.atomic_add(count_T + token, 1, mask=kept, sem="relaxed")
    tl.store(slot_N + n, tl.where(kept, slot, -1), mask=inside)


@triton.jit
def _place_in_token(
    token_N,
    slot_N,
    dropped_N,
    token_offsets,
    scratch_P,
    order_R,
    row_token_R,
    token_row_R,
    count,
    num_tokens,
    BLOCK: tl.constexpr,
):
    """Grid (N / BLOCK). Put each token's assignments side by side; finish the rows not kept."""
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = n < count
    token = tl.load(token_N + n, mask=inside, other=0).to(tl.int64)
    slot = tl.load(slot_N + n, mask=inside, other=-1)
    kept = inside & (slot >= 0)
    start = tl.load(token_offsets + token, mask=kept, other=0)
    tl.store(scratch_P + start + slot, n.to(tl.int32), mask=kept)
    tail = inside & (slot < 0)
    row = tl.load(token_offsets + num_tokens) + tl.load(dropped_N + n, mask=inside, other=1) - 1
    tl.store(order_R + row, n.to(tl.int32), mask=tail)
    tl.store(row_token_R + row, token.to(tl.int32), mask=tail)
    tl.store(token_row_R + row, row, mask=tail)


@triton.jit
def _rank_in_token(
    token_N,
    expert_N,
    token_offsets,
    scratch_P,
    sorted_P,
    count_EB,
    num_tokens,
    num_blocks,
    block_rows,
    BLOCK: tl.constexpr,
):
    """Grid (N / BLOCK). Order each token's assignments by expert; count experts by block."""
    q = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = q < tl.load(token_offsets + num_tokens)
    n = tl.load(scratch_P + q, mask=inside, other=0).to(tl.int64)
    token = tl.load(token_N + n, mask=inside, other=0).to(tl.int64)
    expert = tl.load(expert_N + n, mask=inside, other=0).to(tl.int64)
    start = tl.load(token_offsets + token, mask=inside, other=0)
    size = tl.load(token_offsets + token + 1, mask=inside, other=0) - start
    place = start
    for other in range(0, tl.max(size, axis=0)):
        there = inside & (other < size)
        other_n = tl.load(scratch_P + start + other, mask=there, other=0).to(tl.int64)
        other_expert = tl.load(expert_N + other_n, mask=there, other=0).to(tl.int64)
        # The second term keeps a repeated pair, which the contract forbids, in bounds.
        before = (other_expert < expert) | ((other_expert == expert) & (other_n < n))
        place += (there & before).to(tl.int32)
    tl.store(sorted_P + place, n.to(tl.int32), mask=inside)
    tl.atomic_add(
        count_EB + expert * num_blocks + place // block_rows, 1, mask=inside, sem="relaxed"
    )


@triton.jit
def _place_rows(
    token_N,
    expert_N,
    token_offsets,
    sorted_P,
    start_EB,
    order_R,
    row_token_R,
    token_row_R,
    num_tokens,
    num_blocks,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Grid (B). Rank the block's entries within their experts, stably, and write their rows."""
    block = tl.program_id(0).to(tl.int64)
    local = tl.arange(0, BLOCK)
    p = block * BLOCK + local
    true_rows = tl.load(token_offsets + num_tokens)
    inside = p < true_rows
    n = tl.load(sorted_P + p, mask=inside, other=0).to(tl.int64)
    expert = tl.load(expert_N + n, mask=inside, other=-1).to(tl.int32)
    token = tl.load(token_N + n, mask=inside, other=0).to(tl.int32)
    rank = tl.zeros((BLOCK,), dtype=tl.int32)
    for first in range(0, BLOCK, CHUNK):
        other_local = first + tl.arange(0, CHUNK)
        there = block * BLOCK + other_local < true_rows
        other_n = tl.load(sorted_P + block * BLOCK + other_local, mask=there, other=0).to(tl.int64)
        other = tl.load(expert_N + other_n, mask=there, other=-2).to(tl.int32)
        before = (other[None, :] == expert[:, None]) & (other_local[None, :] < local[:, None])
        rank += tl.sum(before.to(tl.int32), axis=1)
    start = tl.load(start_EB + expert.to(tl.int64) * num_blocks + block, mask=inside, other=0)
    row = start + rank
    tl.store(order_R + row, n.to(tl.int32), mask=inside)
    tl.store(row_token_R + row, token, mask=inside)
    tl.store(token_row_R + p, row, mask=inside)
