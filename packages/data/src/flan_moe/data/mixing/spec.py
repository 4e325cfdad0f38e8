"""What a mixture is made of: which tasks, at which weights, caps, temperatures and settings.

Written as YAML (see ``presets/``) and validated when made. A specification names no sizes: applied
to the tasks that are at hand, `flan_moe.data.mixing.shares` turns it into numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flan_moe.data.template_types import TEMPLATE_TYPES


@dataclass(frozen=True, kw_only=True)
class SubMixture:
    """Tasks that share a weight.

    Attributes:
        weight: Of the whole, relative to the other sub-mixtures; 0 leaves it out.
        mixtures: Stored mixtures that its tasks come from (``muffin``, ``t0_sf``, ``niv2``,
            ``cot``, ...).
        tasks: Shell patterns; a task belongs here if one of them matches its name,
        without: and none of these does.
        cap: Most samples that count towards a task's rate; None for no limit.
        temperature: Rates are taken to the power 1/temperature; 1 is proportional, large is equal.
        factors: Pattern, then what the rate of matching tasks is multiplied with; the first match
            counts.
        template_shares: Setting, then its share of each task's samples; None leaves them as the
            data have them. A task that lacks a setting divides its share among those it has.
    """

    weight: float
    mixtures: tuple[str, ...]
    tasks: tuple[str, ...] = ("*",)
    without: tuple[str, ...] = ()
    cap: int | None = None
    temperature: float = 1.0
    factors: Mapping[str, float] = field(default_factory=dict)
    template_shares: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: One is out of range; names it.
        """
        _check_number("weight", self.weight, least=0)
        _check_number("temperature", self.temperature, above=0)
        for key in ("mixtures", "tasks", "without"):
            _check_names(key, getattr(self, key))
        if not self.mixtures or not self.tasks:
            key = "tasks" if self.mixtures else "mixtures"
            raise ValueError(f"{key} is empty; expected at least one name")
        if self.cap is not None and (type(self.cap) is not int or self.cap < 1):
            raise ValueError(f"cap is {self.cap!r}; expected a positive whole number or null")
        for pattern, factor in self.factors.items():
            _check_number(f"factors.{pattern}", factor, above=0)
        if self.template_shares is None:
            return
        for name, share in self.template_shares.items():
            if name not in TEMPLATE_TYPES:
                raise ValueError(
                    f"template_shares.{name}: no such setting; expected {', '.join(TEMPLATE_TYPES)}"
                )
            _check_number(f"template_shares.{name}", share, least=0)
        total = sum(self.template_shares.values())
        if not total > 0:
            raise ValueError("template_shares: all are 0; expected at least one above")
        if not total < math.inf:
            raise ValueError("template_shares: their sum overflows; expected a finite one")


@dataclass(frozen=True, kw_only=True)
class MixtureSpec:
    """A named mixture.

    Attributes:
        name: For people.
        description: For people: where the numbers come from.
        sub_mixtures: Name, then what it is. No task may belong to two.
        held_out: Tasks that get no share: shell patterns of names, or ``@SET`` for the tasks that
            overlap with an evaluation set, ``@evaluation`` for all of those.
    """

    name: str
    description: str = ""
    sub_mixtures: Mapping[str, SubMixture]
    held_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the weights.

        Raises:
            ValueError: There is no sub-mixture, or all weigh nothing.
        """
        if not self.sub_mixtures:
            raise ValueError("sub_mixtures is empty; expected at least one")
        _check_names("held_out", self.held_out)
        total = sum(sub.weight for sub in self.sub_mixtures.values())
        if not 0 < total < math.inf:
            raise ValueError(f"the weights of sub_mixtures sum to {total}; expected above 0")


def _check_names(key: str, value: Any) -> None:
    """A single text would be taken for its letters."""
    if isinstance(value, str) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{key} is {value!r}; expected a tuple of texts")


def _check_number(
    key: str, value: Any, *, least: float = -math.inf, above: float = -math.inf
) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not least <= value < math.inf or not value > above:
        bound = f"{least} or more" if least > -math.inf else f"above {above}"
        raise ValueError(f"{key} is {value!r}; expected a number {bound}")
