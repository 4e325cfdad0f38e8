"""`parallel_expert_ffn`: `expert_ffn` with the experts spread over the ranks of a group.

Shape suffixes: T tokens, R rows and D model width of this rank, S rows received by it, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed

from flan_moe.experts.ffn import expert_ffn
from flan_moe.experts.parallel.exchange import Exchange, start_exchange
from flan_moe.experts.parallel.plan import Plan, owned_experts, plan_exchange
from flan_moe.experts.parallel.rows import rows_to_tokens, tokens_to_rows
from flan_moe.experts.weights import ExpertWeights
from flan_moe.routing import Routing

LOSSES = ("mean", "sum")


def parallel_expert_ffn(
    x_TD: Tensor,
    routing: Routing,
    weights: ExpertWeights,
    *,
    group: distributed.ProcessGroup,
    num_experts: int,
    activation: str,
    dropout: float = 0.0,
    training: bool = False,
    scale_E: Tensor | None = None,
    backend: str = "auto",
    loss: str = "mean",
) -> Tensor:
    """As `expert_ffn`, where each rank has its own tokens and a share of the experts.

    Rows go to the rank of their expert and their results come back. So every rank of the group
    must call this, forward and backward, equally often and with gradients required of the same
    arguments; it may have any number of tokens, or none. A row takes its weight along, 4 bytes,
    and is weighted where its expert is; results are summed by token at home, in float32 or wider
    and in a fixed order. Under autocast rows travel in the autocast dtype, both ways.

    Let L_n be the loss of rank n of N, a function of its own tokens. Every rank's gradient of x
    and of the row weights is that of its own L_n, as if it had all experts. That of the weights
    is of all ranks' tokens: sum_n L_n for ``loss="sum"``, (1/N) sum_n L_n for ``"mean"``. The
    latter is what DDP and FSDP make of the gradients of replicated parameters.

    Args:
        x_TD: (T, D) tokens of this rank.
        routing: of this rank's tokens to all experts.
        weights: of this rank's experts, `owned_experts`: contiguous, ceil(E / N) on each rank but
            the last ones.
        group: the ranks that share the experts.
        num_experts: E, of all ranks together.
        activation: see `expert_ffn`.
        dropout: see `expert_ffn`; each rank draws from its own generator.
        training: see `expert_ffn`.
        scale_E: of this rank's experts, see `expert_ffn`.
        backend: see `expert_ffn`.
        loss: ``"mean"`` or ``"sum"``.

    Returns:
        (T, D) in the dtype of ``x_TD``; exactly zero for a token without rows. On a GPU the host
        waits for the device once.

    Raises:
        ValueError: if shapes or options do not fit together, or this process is not in the group.
            What only one rank is given wrong leaves the others waiting for it.
    """
    return start_expert_ffn(
        x_TD,
        routing,
        weights,
        group=group,
        num_experts=num_experts,
        activation=activation,
        dropout=dropout,
        training=training,
        scale_E=scale_E,
        backend=backend,
        loss=loss,
    )()


def start_expert_ffn(
    x_TD: Tensor,
    routing: Routing,
    weights: ExpertWeights,
    *,
    group: distributed.ProcessGroup,
    num_experts: int,
    scale_E: Tensor | None = None,
    loss: str = "mean",
    **options: Any,
) -> Callable[[], Tensor]:
    """Send the rows of `parallel_expert_ffn` on their way, without waiting.

    Returns:
        A function to be called once, which waits, runs this rank's experts and returns what
        `parallel_expert_ffn` does. What is computed before the call hides the way of the rows;
        in the backward pass, its backward pass hides the way of their gradients.
    """
    check_loss(loss)
    _check_share(x_TD, routing, {**weights._asdict(), "scale_E": scale_E}, group, num_experts)
    plan = plan_exchange(routing, group)
    x_RD = tokens_to_rows(x_TD, plan.home, dtype=_travel_dtype(x_TD))
    row_weight_R = routing.row_weight_R[: x_RD.shape[0]]
    exchange = start_exchange((x_RD, row_weight_R), plan.traffic)
    divisor = group.size() if loss == "mean" else 1
    *weights, scale_E = (
        tensor if tensor is None else _Share.apply(tensor, divisor)
        for tensor in (*weights, scale_E)
    )
    options["scale_E"] = scale_E
    return partial(_finish, exchange, plan, ExpertWeights(*weights), x_TD.dtype, options)


def check_loss(loss: str) -> None:
    """Refuse an unknown reduction with a ValueError that names the known ones."""
    if loss not in LOSSES:
        raise ValueError(f"loss={loss!r}: expected one of {', '.join(map(repr, LOSSES))}")


def _finish(
    exchange: Exchange,
    plan: Plan,
    weights: ExpertWeights,
    dtype: torch.dtype,
    options: dict[str, Any],
) -> Tensor:
    x_SD, row_weight_S = exchange.wait()
    if weights.wi_EDH.shape[0] == 0:
        y_SD = _NoExperts.apply(x_SD, row_weight_S, *weights, options["scale_E"])
    else:
        away = Routing(
            **plan.away._asdict(),
            row_weight_R=row_weight_S.index_select(0, plan.away.row_token_R),
            losses={},
            stats={},
        )
        y_SD = expert_ffn(x_SD, away, weights, **options)
    (y_RD,) = start_exchange((y_SD,), plan.traffic.back).wait()
    return rows_to_tokens(y_RD, plan.home, dtype=dtype)


def _travel_dtype(x_TD: Tensor) -> torch.dtype:
    """The dtype in which rows travel: the one in which they will be multiplied."""
    device_type = x_TD.device.type
    if torch.is_autocast_enabled(device_type) and x_TD.dtype != torch.float64:
        return torch.get_autocast_dtype(device_type)
    return x_TD.dtype


class _NoExperts(torch.autograd.Function):
    """What a rank without experts, and so without rows, makes of them.

    Nothing; but its backward pass must reach the exchange, and its parameters must have (empty)
    gradients as those of the other ranks have theirs, or collectives over gradients would hang.
    """

    @staticmethod
    def forward(ctx: Any, x_SD: Tensor, *others: Tensor | None) -> Tensor:
        ctx.save_for_backward(*others)
        return x_SD.clone()

    @staticmethod
    def backward(ctx: Any, dy_SD: Tensor) -> tuple[Tensor | None, ...]:
        empty = (None if other is None else torch.zeros_like(other) for other in ctx.saved_tensors)
        return dy_SD, *empty


class _Share(torch.autograd.Function):
    """A weight whose gradient is divided, and contiguous.

    The gradient is to be that of a DTensor. If its strides were others than the parameter's,
    autograd would copy it by operations that communicate, perhaps on this rank only.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, divisor: int) -> Tensor:
        ctx.divisor = divisor
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous()
        return (gradient if ctx.divisor == 1 else gradient / ctx.divisor), None


def _check_share(
    x_TD: Tensor,
    routing: Routing,
    owned: dict[str, Tensor | None],
    group: distributed.ProcessGroup,
    num_experts: int,
) -> None:
    ranks, rank = distributed.get_world_size(group), distributed.get_rank(group)
    if rank < 0:
        raise ValueError(f"group: this process, rank {distributed.get_rank()}, is not in it")
    if routing.num_experts != num_experts:
        raise ValueError(
            f"num_experts={num_experts}, but the routing is for {routing.num_experts} experts"
        )
    if routing.num_tokens != x_TD.shape[0]:
        raise ValueError(f"the routing is for {routing.num_tokens} tokens, x has {x_TD.shape[0]}")
    count = len(owned_experts(num_experts, ranks, rank))
    for name, tensor in owned.items():
        if tensor is not None and tensor.shape[0] != count:
            raise ValueError(
                f"rank {rank} of {ranks} owns {count} of {num_experts} experts, but {name} is of "
                f"{tensor.shape[0]}"
            )
