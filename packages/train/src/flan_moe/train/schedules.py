"""From the recipe's schedule section to a Composer scheduler."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from composer.core import State, Time
from composer.optim import (
    ComposerScheduler,
    ConstantScheduler,
    ConstantWithWarmupScheduler,
    CosineAnnealingScheduler,
    CosineAnnealingWithWarmupScheduler,
    LinearScheduler,
    LinearWithWarmupScheduler,
)

from flan_moe.train.recipe_schema import Constant, Cosine, InverseSquareRoot, Linear

if TYPE_CHECKING:
    from composer.core import TimeUnit


def build_schedule(
    section: Constant | Linear | Cosine | InverseSquareRoot,
) -> ComposerScheduler:
    """The learning rate schedule a recipe asks for, as a multiple of the optimizer's rate."""
    warmup = section.warmup
    if isinstance(section, InverseSquareRoot):
        return InverseSquareRootScheduler(section.warmup)
    if isinstance(section, Constant):
        return ConstantWithWarmupScheduler(t_warmup=warmup) if warmup else ConstantScheduler()
    if isinstance(section, Linear):
        if warmup:
            return LinearWithWarmupScheduler(t_warmup=warmup, alpha_f=section.final)
        return LinearScheduler(alpha_f=section.final)
    if warmup:
        return CosineAnnealingWithWarmupScheduler(t_warmup=warmup, alpha_f=section.final)
    return CosineAnnealingScheduler(alpha_f=section.final)


class InverseSquareRootScheduler(ComposerScheduler):
    """Linear warm-up, then decay with the square root of time, as in T5's pre-training.

    The multiple is ``min(t / warmup, sqrt(warmup / t))``; time is counted in the unit of
    ``warmup``.

    Args:
        warmup: Composer time string at which the multiple reaches 1.
    """

    def __init__(self, warmup: str) -> None:
        self.warmup = Time.from_timestring(warmup)

    def __call__(self, state: State, ssr: float = 1.0) -> float:
        """The multiple at the state's time; ``ssr`` stretches the warm-up."""
        unit: TimeUnit = self.warmup.unit
        warmup = self.warmup.value * ssr
        now = state.timestamp.get(unit).value
        return min(now / warmup, math.sqrt(warmup / now)) if now else 0.0
