"""What the kernels are compared with: a loop over experts in float64, by torch's autograd.

Inputs are of order one. Rows past the true count exist, and hold NaN weights and tokens that do
not exist, so that reading one shows.
"""

import importlib.util
import os
from typing import NamedTuple

import pytest
import torch

from flan_moe.experts.activations import get_activation
from flan_moe.experts.backend import Gradients, MainGrads, Options, RowIndex, Wanted
from flan_moe.experts.dropout import Dropout, dropout_scale
from flan_moe.experts.weights import ExpertWeights
from flan_moe.routing import build_routing

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HAS_TRITON = importlib.util.find_spec("triton") is not None
ON_GPU = torch.cuda.is_available() and HAS_TRITON and not INTERPRETED
DEVICE = "cuda" if ON_GPU else "cpu"
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if ON_GPU else [])]
"""The interpreter has no bfloat16 arithmetic."""

TOLERANCE = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
"""Relative, in the Euclidean norm."""

ALL = Wanted(True, True, True, True, True, True)

kernels_run = pytest.mark.skipif(
    not (INTERPRETED or ON_GPU), reason="needs a CUDA device, or Triton's interpreter"
)


class Case(NamedTuple):
    """The arguments of a backend, and the gradient of its output."""

    x_TD: torch.Tensor
    weights: ExpertWeights
    row_weight_R: torch.Tensor
    index: RowIndex
    options: Options
    dy_TD: torch.Tensor

    @property
    def true_rows(self):
        return int(self.index.expert_offsets[-1])


def route(*, tokens, experts, expert_choice=False, choices=2, keep=0.8, seed=0):
    """Row weights and index, with garbage in the rows that are not there."""
    generator = torch.Generator().manual_seed(seed)
    score_TE = torch.rand(tokens, experts, generator=generator)
    if expert_choice:  # experts take tokens: some are taken by many, some by none
        take = max(1, tokens // 4)
        token_N = score_TE.topk(min(take, tokens), dim=0).indices.T.reshape(-1)
        expert_N = torch.arange(experts).repeat_interleave(min(take, tokens))
    else:
        choices = min(choices, experts)
        token_N = torch.arange(tokens).repeat_interleave(choices)
        expert_N = score_TE.topk(choices).indices.reshape(-1)
    keep_N = torch.rand(len(token_N), generator=generator) < keep
    return index_of(token_N, expert_N, keep_N, tokens, experts, generator)


def index_of(token_N, expert_N, keep_N, tokens, experts, generator):
    routing = build_routing(
        token_N=token_N,
        expert_N=expert_N,
        weight_N=torch.rand(len(token_N), generator=generator),
        keep_N=keep_N,
        num_tokens=tokens,
        num_experts=experts,
        losses={},
        stats={},
        trim=False,
    )
    fields = ("row_token_R", "expert_offsets", "token_offsets", "token_row_R")
    index = RowIndex(*(getattr(routing, name).clone() for name in fields))
    row_weight_R = routing.row_weight_R.clone()
    rows = int(index.expert_offsets[-1])
    row_weight_R[rows:] = torch.nan
    index.row_token_R[rows:] = index.token_row_R[rows:] = 2**31 - 1
    return row_weight_R, index


def make_case(
    activation="geglu",
    *,
    dtype=torch.float32,
    tokens=37,
    width=44,
    hidden=40,
    experts=5,
    bias=False,
    dropout=None,
    routed=None,
    seed=0,
    **routing,
):
    """Random inputs of order one; rows too few to fill, and widths not multiples of, any tile."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, fan=1):
        return (torch.randn(*shape, generator=generator) / fan**0.5).to(DEVICE, dtype)

    act = get_activation(activation)
    pre = 2 * hidden if act.gated else hidden
    row_weight_R, index = routed or route(tokens=tokens, experts=experts, seed=seed, **routing)
    seed_1 = torch.tensor([2**62 + 12345], device=DEVICE)
    return Case(
        normal(tokens, width),
        ExpertWeights(
            normal(experts, width, pre, fan=width),
            normal(experts, hidden, width, fan=hidden),
            normal(experts, pre) if bias else None,
            normal(experts, width) if bias else None,
        ),
        row_weight_R.to(DEVICE),
        RowIndex(*(tensor.to(DEVICE) for tensor in index)),
        Options(
            activation=act,
            dropout=None if dropout is None else Dropout(seed_1, dropout),
            matmul_dtype=dtype,
        ),
        normal(tokens, width),
    )


def oracle(case):
    """The output and `Gradients` of a loop over experts, float64, all that exist."""
    leaves = [
        None if tensor is None else tensor.double().requires_grad_()
        for tensor in (case.x_TD, *case.weights, case.row_weight_R)
    ]
    x_TD, wi_EDH, wo_EFD, bi_EH, bo_ED, row_weight_R = leaves
    offsets, token_R = case.index.expert_offsets.tolist(), case.index.row_token_R.long()
    y_TD = torch.zeros_like(x_TD)
    for expert in range(len(offsets) - 1):
        begin, end = offsets[expert : expert + 2]
        token_r = token_R[begin:end]
        h_rH = x_TD[token_r] @ wi_EDH[expert]
        a_rF = case.options.activation.forward(h_rH if bi_EH is None else h_rH + bi_EH[expert])
        if case.options.dropout is not None:
            scale_RF = dropout_scale(case.options.dropout, end, a_rF.shape[1])
            a_rF = a_rF * scale_RF[begin:].double()
        y_rD = a_rF @ wo_EFD[expert]
        y_rD = y_rD if bo_ED is None else y_rD + bo_ED[expert]
        y_TD = y_TD.index_add(0, token_r, y_rD * row_weight_R[begin:end, None])
    present = [leaf for leaf in leaves if leaf is not None]
    found = iter(torch.autograd.grad(y_TD, present, case.dy_TD.double(), materialize_grads=True))
    return y_TD.detach(), Gradients(*(None if x is None else next(found) for x in leaves))


def relative_error(ours, expected):
    """Of two tensors, in the Euclidean norm; zero if both are zero."""
    assert ours.shape == expected.shape
    distance = float((ours.double() - expected.double()).norm())
    return distance and distance / max(float(expected.double().norm()), 1e-30)


def check_close(ours, expected, dtype):
    """Two `Gradients`: every tensor, and every expert's slice of what has experts."""
    for name, mine, theirs in zip(Gradients._fields, ours, expected, strict=True):
        assert (mine is None) == (theirs is None), name
        if mine is None:
            continue
        assert relative_error(mine, theirs) < TOLERANCE[dtype], name
        if "_E" in name:
            for expert in range(len(mine)):
                error = relative_error(mine[expert], theirs[expert])
                assert error < 3 * TOLERANCE[dtype], (name, expert)


def run(case, *, configs=None, wanted=None, main_grads=None, keep=True):
    """The triton backend's output and gradients, all that exist unless ``wanted`` says less."""
    from flan_moe.experts.kernels import backend

    x_TD, weights, row_weight_R, index, options, dy_TD = case
    if wanted is None:
        wanted = ALL._replace(bi=weights.bi_EH is not None, bo=weights.bo_ED is not None)
    y_TD, kept = backend.forward(*case[:-1], keep=keep, configs=configs)
    gradients = backend.backward(
        dy_TD,
        x_TD if wanted.wi else None,
        kept,
        weights,
        row_weight_R,
        index,
        options,
        wanted,
        main_grads or MainGrads(),
        configs=configs,
    )
    return y_TD, gradients


def small_tiles(*, tma=False, rows=16):
    """Several tiles of every kind even for a few dozen rows and columns."""
    from flan_moe.experts.kernels.config import KernelConfigs, TileConfig

    def tile(m, n, k, group=2):
        return TileConfig(
            block_m=m, block_n=n, block_k=k, group_m=group, num_warps=4, num_stages=2, tma=tma
        )

    return KernelConfigs(
        up=tile(rows, 32, 16),
        down=tile(16, 32, 32, group=1),
        dhidden=tile(rows, 32, 16),
        dx=tile(2 * rows, 32, 16),
        dwi=tile(16, 32, 16),
        dwo=tile(32, 64, 32),
    )
