"""Gradient clipping where some parameters are DTensors and others are not.

``torch.nn.utils.clip_grad_norm_`` refuses such a mixture.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor] | Tensor, max_norm: float) -> Tensor:
    """Scale all gradients down, in place, so that together they have at most a given norm.

    Call it after the gradients have been averaged over ranks, on all ranks: each adds its share
    of the sharded parameters, and gradients of the others must be equal on all.

    Args:
        parameters: plain tensors, and DTensors of any mesh and placement, or one of them; those
            without a gradient do not count.
        max_norm: the largest norm allowed, over all gradients as one vector.

    Returns:
        The 2-norm before clipping, a scalar, the same on every rank.

    Raises:
        ValueError: if ``max_norm`` is negative.
    """
    if not max_norm >= 0:
        raise ValueError(f"max_norm={max_norm!r}: expected a number >= 0")
    if isinstance(parameters, Tensor):  # to iterate over it would give rows without gradients
        parameters = [parameters]
    groups: dict[object, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            key = parameter.device_mesh if isinstance(parameter, DTensor) else None
            groups.setdefault(key, []).append(parameter)
    norms = [_whole(get_total_norm([p.grad for p in group])) for group in groups.values()]
    total = get_total_norm(norms)
    for group in groups.values():
        clip_grads_with_norm_(group, max_norm, total)
    return total


def _whole(norm: Tensor) -> Tensor:
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
