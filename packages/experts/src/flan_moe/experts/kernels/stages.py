"""Each kernel of a pass by itself, on random data, with what it should give: for the tuner.

Importing this imports triton.

Shape suffixes: T tokens, R rows (R of one expert: r), E experts, D model width, F hidden width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from flan_moe.experts.activations import get_activation
from flan_moe.experts.kernels.config import TileConfig
from flan_moe.experts.kernels.dhidden import dhidden
from flan_moe.experts.kernels.dweight import dweight
from flan_moe.experts.kernels.rows_matmul import rows_matmul
from flan_moe.experts.kernels.schedule import tile_table
from flan_moe.experts.kernels.up import up
from flan_moe.experts.kernels.workload import Workload
from flan_moe.routing import build_routing


class Stage(NamedTuple):
    """A kernel on fixed inputs.

    Attributes:
        run: the kernel's result for a configuration.
        expected: the same by torch, an expert at a time, accumulated in float32.
    """

    run: Callable[[TileConfig], Tensor]
    expected: Tensor


def make_stages(work: Workload, device: torch.device) -> dict[str, Stage]:
    """A stage for each field of `config.KernelConfigs`, on inputs of order one."""
    act = get_activation(work.activation)
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int, fan: int = 1, dtype: torch.dtype = work.dtype) -> Tensor:
        numbers = torch.randn(*shape, generator=generator, device=device) / fan**0.5
        return numbers.to(dtype)

    score_TE = torch.rand(work.tokens, work.experts, generator=generator, device=device)
    routing = build_routing(
        token_N=torch.arange(work.tokens, device=device).repeat_interleave(work.choices),
        expert_N=score_TE.topk(work.choices).indices.reshape(-1),
        weight_N=torch.rand(work.rows, generator=generator, device=device),
        num_tokens=work.tokens,
        num_experts=work.experts,
        losses={},
        stats={},
    )
    offsets, token_R, weight_R = routing.expert_offsets, routing.row_token_R, routing.row_weight_R
    pre = (2 if act.gated else 1) * work.hidden
    x_TD, dy_TD = normal(work.tokens, work.width), normal(work.tokens, work.width)
    wi_EDH = normal(work.experts, work.width, pre, fan=work.width, dtype=work.weight_dtype)
    wo_EFD = normal(work.experts, work.hidden, work.width, fan=work.hidden, dtype=work.weight_dtype)

    bounds = offsets.tolist()
    experts = [slice(*bounds[e : e + 2]) for e in range(work.experts)]

    def by_expert(rows_RX: Tensor, weights: Tensor) -> Tensor:
        parts = [rows_RX[r].float() @ weights[e].float() for e, r in enumerate(experts)]
        return torch.cat(parts)

    def over_rows(left_RX: Tensor, right_RX: Tensor) -> Tensor:
        return torch.stack([left_RX[r].float().T @ right_RX[r].float() for r in experts])

    x_RD, dy_RD = x_TD[token_R.long()], dy_TD[token_R.long()]
    h_RH = by_expert(x_RD, wi_EDH)
    hidden_RF, pullback = act.vjp(h_RH)
    da_RF = by_expert(dy_RD, wo_EFD.transpose(1, 2))
    dh_RH = pullback(da_RF * weight_R[:, None]).to(work.dtype)
    a_RF = hidden_RF.to(work.dtype)
    kept = a_RF if act.keeps_output else h_RH.to(work.dtype)

    def run_up(config: TileConfig) -> Tensor:
        tiles = tile_table(offsets, work.rows, config.block_m)
        keep = not act.keeps_output
        return up(x_TD, token_R, wi_EDH, None, offsets, tiles, act, None, keep=keep, config=config)[
            0
        ]

    def run_rows(left: Tensor, weights: Tensor, config: TileConfig) -> Tensor:
        tiles = tile_table(offsets, work.rows, config.block_m)
        return rows_matmul(left, weights, None, offsets, tiles, config=config)

    def run_dhidden(config: TileConfig) -> Tensor:
        tiles = tile_table(offsets, work.rows, config.block_m)
        return dhidden(
            dy_TD, token_R, weight_R, wo_EFD, kept, offsets, tiles, act, None,
            want_dh=True, want_weighted=True, want_partial=True, config=config,
        ).dh_RH  # fmt: skip

    def run_dweight(
        left: Tensor, right: Tensor, gather_left: bool, like: Tensor, config: TileConfig
    ) -> Tensor:
        out = torch.empty_like(like)
        dweight(
            left, right, token_R, offsets,
            gather_left=gather_left, out_EMN=out, accumulate=False, config=config,
        )  # fmt: skip
        return out

    wi_EHD = wi_EDH.transpose(1, 2)
    return {
        "up": Stage(run_up, hidden_RF),
        "down": Stage(lambda c: run_rows(a_RF, wo_EFD, c), by_expert(a_RF, wo_EFD)),
        "dhidden": Stage(run_dhidden, dh_RH.float()),
        "dx": Stage(lambda c: run_rows(dh_RH, wi_EHD, c), by_expert(dh_RH, wi_EHD)),
        "dwi": Stage(lambda c: run_dweight(x_TD, dh_RH, True, wi_EDH, c), over_rows(x_RD, dh_RH)),
        "dwo": Stage(lambda c: run_dweight(a_RF, dy_TD, False, wo_EFD, c), over_rows(a_RF, dy_RD)),
    }
