"""The parts that a whole pass shows only in sum: the tile table, dropout's bits, activations."""

import pytest
import torch
from kernel_oracle import DEVICE, kernels_run, relative_error

from flan_moe.experts.activations import ACTIVATIONS, RELU, RELU2
from flan_moe.experts.dropout import Dropout, dropout_scale

triton = pytest.importorskip("triton")
tl = triton.language

from flan_moe.experts.kernels.activation import slope_from_output, value_and_slope  # noqa: E402
from flan_moe.experts.kernels.dropout import dropout_tile  # noqa: E402
from flan_moe.experts.kernels.schedule import locate, tile_bound, tile_table  # noqa: E402

pytestmark = kernels_run


@pytest.mark.parametrize("block_m", [1, 4, 16])
@pytest.mark.parametrize(
    "counts",
    [
        [5],
        [0],
        [0, 0, 7, 0, 1, 16, 0, 33, 0],
        [1] * 150,
        [0] * 130 + [3] + [0] * 130 + [40],
    ],
    ids=["one expert", "no rows", "mixed", "a row each", "more than a block of experts"],
)
def test_the_table_lists_every_experts_tiles_in_order(counts, block_m):
    expert_offsets = torch.tensor([0, *counts]).cumsum(0).int()
    slack = 9  # rows that the host counts and that are not there
    table = tile_table(expert_offsets.to(DEVICE), sum(counts) + slack, block_m)
    expected = [
        (expert, first)
        for expert in range(len(counts))
        for first in range(*expert_offsets[expert : expert + 2].tolist(), block_m)
    ]
    count = int(table.count)
    assert count == len(expected) <= table.bound
    listed = zip(table.expert_M[:count].tolist(), table.row_M[:count].tolist(), strict=True)
    assert list(listed) == expected


def test_the_bound_is_reached():
    """All experts but one have one row, and the last the rest: each wastes what a tile can."""
    counts = [1] * 7 + [17]
    assert tile_bound(sum(counts), len(counts), 16) == sum(-(-n // 16) for n in counts)
    assert tile_bound(0, 8, 16) == 0
    assert tile_bound(3, 8, 16) == 3


@triton.jit
def _locate_all(out, pieces, row_tiles, column_tiles, GROUP_M: tl.constexpr):
    for piece in range(pieces):
        row, column = locate(piece, row_tiles, column_tiles, GROUP_M)
        tl.store(out + piece, row * column_tiles + column)


@pytest.mark.parametrize(("row_tiles", "column_tiles", "group"), [(7, 3, 4), (1, 5, 8), (8, 2, 1)])
def test_every_piece_of_work_is_done_once(row_tiles, column_tiles, group):
    pieces = row_tiles * column_tiles
    out = torch.zeros(pieces, dtype=torch.int32, device=DEVICE)
    _locate_all[(1,)](out, pieces, row_tiles, column_tiles, GROUP_M=group)
    assert sorted(out.tolist()) == list(range(pieces))
    # One column for all row tiles of a group before the next column.
    first = [piece // column_tiles for piece in out.tolist()[: min(group, row_tiles)]]
    assert first == list(range(min(group, row_tiles)))


@triton.jit
def _dropout(
    out, seed, first_row, rows, width, levels, scale, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    first_n = tl.program_id(1) * BLOCK_N
    tile = dropout_tile(
        tl.load(seed), first_row + row, first_n, width, levels, scale, BLOCK_M, BLOCK_N
    )
    n = first_n + tl.arange(0, BLOCK_N)
    mask = (row < rows)[:, None] & (n < width)[None, :]
    tl.store(out + row[:, None] * width + n[None, :], tile, mask=mask)


@pytest.mark.parametrize("block_n", [16, 64])
@pytest.mark.parametrize("first_row", [0, 2**31 - 40])
@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_dropout_is_the_hosts_to_the_bit(probability, first_row, block_n):
    rows, width = 21, 100
    draw = Dropout(torch.tensor([2**63 - 987654321], device=DEVICE), probability)
    out_RF = torch.full((rows, width), torch.nan, device=DEVICE)
    grid = (triton.cdiv(rows, 8), triton.cdiv(width, block_n))
    _dropout[grid](
        out_RF,
        draw.seed,
        first_row,
        rows,
        width,
        draw.dropped_levels,
        draw.scale,
        BLOCK_M=8,
        BLOCK_N=block_n,
    )
    assert torch.equal(out_RF, dropout_scale(draw, rows, width, first_row=first_row))


@triton.jit
def _activation(h, value, slope, BLOCK: tl.constexpr, ACT: tl.constexpr):
    i = tl.arange(0, BLOCK)
    value_i, slope_i = value_and_slope(tl.load(h + i), ACT)
    tl.store(value + i, value_i)
    tl.store(slope + i, slope_i)


@triton.jit
def _slope_from_output(a, slope, BLOCK: tl.constexpr, ACT: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(slope + i, slope_from_output(tl.load(a + i), ACT))


POINTWISE = {a.act.name: a.act for a in ACTIVATIONS.values()}


@pytest.mark.parametrize("name", POINTWISE)
def test_activations_and_their_slopes(name):
    h = torch.linspace(-6, 6, 1024, device=DEVICE)
    value, slope = torch.empty_like(h), torch.empty_like(h)
    _activation[(1,)](h, value, slope, BLOCK=1024, ACT=name)
    leaf = h.double().requires_grad_()
    expected = POINTWISE[name].function(leaf)
    (expected_slope,) = torch.autograd.grad(expected.sum(), leaf)
    torch.testing.assert_close(value.double(), expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(slope.double(), expected_slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", POINTWISE)
def test_activations_far_from_zero(name):
    """No overflow on the way; NaN is passed on, not hidden."""
    h = torch.tensor([-3e4, -40.0, 40.0, 3e4, torch.nan, 0.0, 0.0, 0.0], device=DEVICE)
    value, slope = torch.empty_like(h), torch.empty_like(h)
    _activation[(1,)](h, value, slope, BLOCK=8, ACT=name)
    expected = POINTWISE[name].function(h[:4].double())
    torch.testing.assert_close(value[:4].double(), expected)
    assert value[:4].isfinite().all()
    assert slope[:4].isfinite().all()
    assert bool(value[4].isnan())


@pytest.mark.parametrize("act", [RELU, RELU2], ids=lambda act: act.name)
def test_slopes_from_the_output(act):
    h = torch.linspace(-3, 3, 64, device=DEVICE)
    a, slope = act.function(h), torch.empty_like(h)
    _slope_from_output[(1,)](a, slope, BLOCK=64, ACT=act.name)
    leaf = h.double().requires_grad_()
    (expected,) = torch.autograd.grad(act.function(leaf).sum(), leaf)
    assert relative_error(slope, expected) < 1e-6
