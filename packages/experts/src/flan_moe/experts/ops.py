"""`expert_ffn_forward` and its gradient as operators that torch knows by name.

Compilation, fake tensors, activation checkpointing policies and profilers see one operator each
way, whatever the backend does inside. Differentiable once; a second derivative is refused.

Shape suffixes: T tokens, R rows, E experts, D model width, F hidden width, H pre-activation width.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from flan_moe.experts.activations import get_activation
from flan_moe.experts.backend import Backend, MainGrads, Options, RowIndex, Wanted
from flan_moe.experts.dropout import Dropout
from flan_moe.experts.weights import ExpertWeights


def get_backend(name: str) -> Backend:
    """The module that does the work; triton is imported for ``"triton"`` only.

    Raises:
        ModuleNotFoundError: if that is not installed, saying what to do.
    """
    if name == "grouped":
        from flan_moe.experts import grouped

        return grouped
    try:
        from flan_moe.experts.kernels import backend
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise ModuleNotFoundError(
            "backend 'triton' needs the triton package, which CUDA builds of torch bring along; "
            "install flan-moe-experts[triton], or use 'grouped'",
            name="triton",
        ) from error
    return backend


def _no_autocast(x: Tensor) -> AbstractContextManager:
    """What runs inside an operator has its dtypes already."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()


def run_forward(
    x_TD: Tensor,
    wi_EDH: Tensor,
    wo_EFD: Tensor,
    bi_EH: Tensor | None,
    bo_ED: Tensor | None,
    row_weight_R: Tensor,
    row_token_R: Tensor,
    expert_offsets: Tensor,
    token_offsets: Tensor,
    token_row_R: Tensor,
    seed: Tensor | None,
    main_grad_wi: Tensor | None,
    main_grad_wo: Tensor | None,
    accumulate: bool,
    probability: float,
    activation: str,
    backend: str,
    matmul_dtype: torch.dtype,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """The output, and what the backward pass needs (nothing unless ``keep``).

    The arguments are those of `flan_moe.experts.expert_ffn`, taken apart into what an operator
    may take: ``seed`` and ``probability`` are of the dropout draw (None: no dropout),
    ``main_grad_*`` and ``accumulate`` of `MainGrads`, for the backward pass; ``backend`` is a name
    for `get_backend`, ``keep`` tells whether a backward pass will follow.
    """
    dropout = None if seed is None else Dropout(seed, probability)
    with _no_autocast(x_TD):
        y_TD, kept = get_backend(backend).forward(
            x_TD,
            ExpertWeights(wi_EDH, wo_EFD, bi_EH, bo_ED),
            row_weight_R,
            RowIndex(row_token_R, expert_offsets, token_offsets, token_row_R),
            Options(
                activation=get_activation(activation), dropout=dropout, matmul_dtype=matmul_dtype
            ),
            keep=keep,
        )
    return y_TD, x_TD.new_empty(0) if kept is None else kept


expert_ffn_forward = torch.library.custom_op("flan_moe::expert_ffn_forward", mutates_args=())(
    run_forward
)
"""`run_forward` as an operator."""


@expert_ffn_forward.register_fake
def _(
    x_TD: Tensor,
    wi_EDH: Tensor,
    wo_EFD: Tensor,
    bi_EH: Tensor | None,
    bo_ED: Tensor | None,
    row_weight_R: Tensor,
    *others: Any,
) -> tuple[Tensor, Tensor]:
    activation, _, matmul_dtype, keep = others[-4:]
    y_TD = x_TD.new_empty(x_TD.shape)
    if not keep:
        return y_TD, x_TD.new_empty(0)
    width = wo_EFD.shape[1] if get_activation(activation).keeps_output else wi_EDH.shape[2]
    return y_TD, x_TD.new_empty((row_weight_R.shape[0], width), dtype=matmul_dtype)


@torch.library.custom_op(
    "flan_moe::expert_ffn_backward", mutates_args=("main_grad_wi", "main_grad_wo")
)
def expert_ffn_backward(
    dy_TD: Tensor,
    kept: Tensor,
    x_TD: Tensor | None,
    wi_EDH: Tensor,
    wo_EFD: Tensor,
    bi_EH: Tensor | None,
    bo_ED: Tensor | None,
    row_weight_R: Tensor,
    row_token_R: Tensor,
    expert_offsets: Tensor,
    token_offsets: Tensor,
    token_row_R: Tensor,
    seed: Tensor | None,
    main_grad_wi: Tensor | None,
    main_grad_wo: Tensor | None,
    accumulate: bool,
    probability: float,
    activation: str,
    backend: str,
    matmul_dtype: torch.dtype,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of the first six inputs of `expert_ffn_forward`; empty where not ``wanted``.

    ``x_TD`` is needed for the gradient of wi only. A weight gradient that goes into its main
    gradient is empty, too.
    """
    dropout = None if seed is None else Dropout(seed, probability)
    with _no_autocast(dy_TD):
        gradients = get_backend(backend).backward(
            dy_TD,
            x_TD,
            kept,
            ExpertWeights(wi_EDH, wo_EFD, bi_EH, bo_ED),
            row_weight_R,
            RowIndex(row_token_R, expert_offsets, token_offsets, token_row_R),
            Options(
                activation=get_activation(activation), dropout=dropout, matmul_dtype=matmul_dtype
            ),
            Wanted(*wanted),
            MainGrads(main_grad_wi, main_grad_wo, accumulate),
        )
    return tuple(dy_TD.new_empty(0) if gradient is None else gradient for gradient in gradients)


@expert_ffn_backward.register_fake
def _(
    dy_TD: Tensor,
    kept: Tensor,
    x_TD: Tensor | None,
    wi_EDH: Tensor,
    wo_EFD: Tensor,
    bi_EH: Tensor | None,
    bo_ED: Tensor | None,
    row_weight_R: Tensor,
    *others: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    main_grad_wi, main_grad_wo, *_, wanted = others[5:]
    returned = list(wanted)
    returned[1] &= main_grad_wi is None
    returned[2] &= main_grad_wo is None
    inputs = (dy_TD, wi_EDH, wo_EFD, bi_EH, bo_ED, row_weight_R)
    return tuple(
        value.new_empty(value.shape) if is_returned else dy_TD.new_empty(0)
        for value, is_returned in zip(inputs, returned, strict=True)
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x_TD, *tensors, accumulate, probability, activation, backend, matmul_dtype, keep = inputs
    if not keep:
        raise RuntimeError("keep=False: this output cannot be differentiated")
    wants_wi = ctx.needs_input_grad[1]
    ctx.save_for_backward(output[1], x_TD if wants_wi else None, *tensors)
    ctx.options = (accumulate, probability, activation, backend, matmul_dtype)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy_TD: Tensor | None, dkept: None) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:6])
    arguments = len(ctx.needs_input_grad)
    if dy_TD is None:
        return (None,) * arguments
    kept, *tensors = ctx.saved_tensors
    gradients = expert_ffn_backward(dy_TD, kept, *tensors, *ctx.options, wanted)
    main_grad_wi, main_grad_wo = tensors[11:13]
    wanted[1] &= main_grad_wi is None
    wanted[2] &= main_grad_wo is None
    returned = [g if w else None for g, w in zip(gradients, wanted, strict=True)]
    return (*returned, *(None,) * (arguments - len(returned)))


expert_ffn_forward.register_autograd(_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.flan_moe.expert_ffn_forward)
def _forward_flops(
    x: torch.Size,
    wi: torch.Size,
    wo: torch.Size,
    bi: Any,
    bo: Any,
    row_weight: torch.Size,
    *_: Any,
    **__: Any,
) -> int:
    """Two per multiply-add of the two products; on a GPU for the bound of the row count."""
    return 2 * row_weight[0] * (wi[1] * wi[2] + wo[1] * wo[2])


@register_flop_formula(torch.ops.flan_moe.expert_ffn_backward)
def _backward_flops(
    dy: torch.Size,
    kept: Any,
    x: Any,
    wi: torch.Size,
    wo: torch.Size,
    bi: Any,
    bo: Any,
    row_weight: torch.Size,
    *arguments: Any,
    **_: Any,
) -> int:
    """As `_forward_flops`, of the products that the wanted gradients take."""
    wants = Wanted(*arguments[-1])
    needs_dh = wants.x or wants.wi or wants.bi
    times_wi = 2 * row_weight[0] * wi[1] * wi[2]
    times_wo = 2 * row_weight[0] * wo[1] * wo[2]
    return times_wi * (wants.wi + wants.x) + times_wo * (wants.wo + (needs_dh or wants.row_weight))
