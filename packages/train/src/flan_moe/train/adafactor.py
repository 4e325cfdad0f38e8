"""Adafactor as T5X runs it, with the expert axis as a batch of separate matrices.

The libraries' versions factor a stack of matrices matrix by matrix, but take the update clipping
and the parameter scale over the whole stack (`transformers.Adafactor`, `torch.optim.Adafactor`;
the latter also bounds the learning rate by ``1/sqrt(t)``). One expert with large updates would
then shorten the steps of all the others. T5X marks the expert axis ``BATCH``, so that factoring,
clipping and scale are all per expert, and that is what this module does; on matrices and vectors
it agrees with `transformers.Adafactor` (both are tested).

One rule decides what is factored: a matrix, lone or one expert of a stack, whose sides are both at
least ``min_dim_size_to_factor``. T5X and optax ask this of lone matrices only; T5X factors a stack
with a ``BATCH`` axis whatever the sizes (`t5x/adafactor.py`, `_parse_rule`). The rules agree from
128 on, that is on every T5X model. Below, T5X's would factor the experts of a small sparse model
and none of its dense twin, and the comparison of the two would be one of optimizers as well.

Shape suffixes: E experts (any leading axes), I rows, J columns of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

MIN_DIM_SIZE_TO_FACTOR = 128
"""A matrix is factored if both its sides are at least this long (T5X's and optax's default)."""


class ExpertAdafactor(Optimizer):
    """Adafactor (Shazeer and Stern 2018) without momentum and without a relative step size.

    Args:
        params: Parameters or parameter groups. A parameter with three or more axes is a stack of
            matrices over its last two.
        lr: Learning rate, constant or set by a schedule.
        decay: Exponent of the second moment's decay: ``beta2(t) = 1 - t**-decay``.
        clip_threshold: Root mean square to which a matrix's update is clipped.
        scale_parameter: Multiply the learning rate by the matrix's root mean square, at least
            ``eps[1]``.
        eps: Added to squared gradients; least parameter scale.
        weight_decay: Decoupled: weights shrink by ``lr * weight_decay`` per step.
        min_dim_size_to_factor: Shortest side of a matrix, lone or in a stack, whose second moment
            is factored.

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        decay: float = 0.8,
        clip_threshold: float = 1.0,
        scale_parameter: bool = True,
        eps: tuple[float, float] = (1e-30, 1e-3),
        weight_decay: float = 0.0,
        min_dim_size_to_factor: int = MIN_DIM_SIZE_TO_FACTOR,
    ) -> None:
        for key, value in (("lr", lr), ("decay", decay), ("clip_threshold", clip_threshold)):
            if not value > 0:
                raise ValueError(f"{key}: expected a positive number, got {value!r}")
        if min_dim_size_to_factor < 1:
            raise ValueError(
                "min_dim_size_to_factor: expected a positive whole number, got "
                f"{min_dim_size_to_factor!r}"
            )
        if weight_decay < 0:
            raise ValueError(f"weight_decay: expected a number of at least 0, got {weight_decay!r}")
        super().__init__(
            params,
            {
                "lr": lr,
                "decay": decay,
                "clip_threshold": clip_threshold,
                "scale_parameter": scale_parameter,
                "eps": eps,
                "weight_decay": weight_decay,
                "min_dim_size_to_factor": min_dim_size_to_factor,
            },
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: Recomputes the loss, if given.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        gradient = parameter.grad.float()
        if not state:
            _init(state, gradient, group["min_dim_size_to_factor"])
        state["step"] += 1
        decay = 1.0 - state["step"].item() ** -group["decay"]
        least_square, least_scale = group["eps"]

        square = gradient.square().add_(least_square)
        if "row" in state:
            # lerp: v <- decay * v + (1 - decay) * mean
            state["row"].lerp_(square.mean(dim=-1), 1.0 - decay)
            state["column"].lerp_(square.mean(dim=-2), 1.0 - decay)
            update = gradient * inverse_root(state["row"], state["column"])
        else:
            state["square"].lerp_(square, 1.0 - decay)
            update = gradient * state["square"].rsqrt()

        update /= (matrix_rms(update) / group["clip_threshold"]).clamp_(min=1.0)
        if group["scale_parameter"]:
            update *= matrix_rms(parameter.float()).clamp_(min=least_scale)
        if group["weight_decay"]:
            parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
        parameter.add_(update.to(parameter.dtype), alpha=-group["lr"])


def matrix_rms(x_EIJ: Tensor) -> Tensor:
    """Root mean square of each matrix of a stack, (..., 1, 1); of a vector as a whole, (1,)."""
    axes = tuple(range(max(0, x_EIJ.dim() - 2), x_EIJ.dim()))
    return x_EIJ.square().mean(dim=axes, keepdim=True).sqrt_() if axes else x_EIJ.abs()


def inverse_root(row_EI: Tensor, column_EJ: Tensor) -> Tensor:
    """``1 / sqrt(V)`` of each matrix's rank-one second moment ``V = row column^T / mean(row)``."""
    row = (row_EI / row_EI.mean(dim=-1, keepdim=True)).rsqrt()
    return row.unsqueeze(-1) * column_EJ.rsqrt().unsqueeze(-2)


def _init(state: dict[str, Any], gradient: Tensor, min_dim_size_to_factor: int) -> None:
    shape = gradient.shape
    state["step"] = torch.tensor(0.0)
    if len(shape) >= 2 and min(shape[-2:]) >= min_dim_size_to_factor:
        state["row"] = gradient.new_zeros(shape[:-1])
        state["column"] = gradient.new_zeros((*shape[:-2], shape[-1]))
    else:
        state["square"] = torch.zeros_like(gradient)
