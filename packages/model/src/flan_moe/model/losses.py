"""The training loss: cross-entropy plus weighted auxiliary losses of the routers.

Shape suffixes: T real decoder tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from flan_moe.routing import Routing

IGNORED_LABEL = -100


def token_cross_entropy(logits_TV: Tensor, labels_T: Tensor) -> Tensor:
    """Mean cross-entropy over labels other than -100, in float32 or wider; NaN without labels."""
    wide_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
    return F.cross_entropy(wide_TV, labels_T, ignore_index=IGNORED_LABEL)


def mean_aux_losses(routings: Iterable[Routing]) -> dict[str, Tensor]:
    """Mean of each auxiliary loss over the sparse layers, unweighted (flaxformer's convention).

    Others sum over layers or concatenate tokens; to convert a coefficient from a sum over N
    layers, multiply it by N.
    """
    by_name: dict[str, list[Tensor]] = {}
    for routing in routings:
        for name, loss in routing.losses.items():
            by_name.setdefault(name, []).append(loss)
    return {name: torch.stack(losses).mean() for name, losses in by_name.items()}


def total_loss(
    cross_entropy: Tensor,
    aux_losses: Mapping[str, Tensor],
    coefficients: Mapping[str, float],
) -> Tensor:
    """``cross_entropy`` plus each auxiliary loss times its coefficient; absent ones are 0."""
    loss = cross_entropy
    for name, coefficient in coefficients.items():
        if coefficient and name in aux_losses:
            loss = loss + coefficient * aux_losses[name]
    return loss
