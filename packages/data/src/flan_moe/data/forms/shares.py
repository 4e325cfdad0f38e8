"""How often each form is taken, mixture by mixture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from flan_moe.data.template_types import FS_NOOPT, FS_OPT, TEMPLATE_TYPES, ZS_NOOPT, ZS_OPT

FEW_SHOT_SHARE = 0.25  # of the examples of mini-Flan; the rest is zero-shot
COT_SHARE = 2 / 3  # of the examples of a task with rationales; the rest answers at once

_GOLDEN = (math.sqrt(5) - 1) / 2  # steps by it fill an interval most evenly


@dataclass(frozen=True, kw_only=True)
class FormShares:
    """Shares of the forms among the examples of one task.

    Attributes:
        settings: Setting (`flan_moe.data.template_types`), then its share; they need not sum to 1.
        reasons: Of the examples of a task with rationales, those that reason before they answer.
        shots: Most exemplars of a few-shot prompt.
        full: Of the few-shot prompts, those with all ``shots`` exemplars where they fit; the others
            draw a number from 1 to ``shots``.
        suite_layout: Of the few-shot prompts, those laid out as an evaluation suite asks.
        under_definition: Of the few-shot prompts of a task with a definition, those that show
            solved problems under the one definition.
        fixed_options: Of the prompts with options, those that list them in the one fixed form.
    """

    settings: Mapping[str, float]
    reasons: float = COT_SHARE
    shots: int = 5
    full: float = 0.5
    suite_layout: float = 0.25
    under_definition: float = 0.75
    fixed_options: float = 1 / 3

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: One is out of range; names it.
        """
        for name, share in self.settings.items():
            if name not in TEMPLATE_TYPES:
                raise ValueError(
                    f"settings: no setting {name!r}; expected some of {', '.join(TEMPLATE_TYPES)}"
                )
            if not 0 <= share < math.inf:
                raise ValueError(f"settings: {name} is {share}; expected a number, 0 or more")
        if not sum(self.settings.values()) > 0:
            raise ValueError("settings: all shares are 0; expected at least one above")
        if self.shots < 1:
            raise ValueError(f"shots is {self.shots}; expected 1 or more")
        for key in ("reasons", "full", "suite_layout", "under_definition", "fixed_options"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key} is {getattr(self, key)}; expected 0 to 1")

    def setting(self, index: int, start: float) -> str:
        """The setting of example ``index``.

        Every stretch of examples, however short, has the settings in their shares to within one or
        two examples: they are not drawn one by one but stepped through.

        Args:
            index: Number of the example within its task.
            start: Where to begin, 0 to 1; tasks with different starts begin differently.
        """
        place = (start + index * _GOLDEN) % 1.0 * sum(self.settings.values())
        for name, share in self.settings.items():
            if place < share:
                return name
            place -= share
        return next(name for name, share in reversed(self.settings.items()) if share > 0)


# google-research/FLAN, flan/v2/run_example.py: Flan 2021 and T0 are mixed from four settings in
# equal parts; CoT and Natural Instructions have no form without options.
_FOUR = dict.fromkeys((ZS_OPT, ZS_NOOPT, FS_OPT, FS_NOOPT), 0.25)
_TWO = {ZS_OPT: 0.5, FS_OPT: 0.5}

FLAN_SHARES: Mapping[str, FormShares] = MappingProxyType(
    {
        "muffin": FormShares(settings=_FOUR),
        "t0_sf": FormShares(settings=_FOUR),
        "niv2": FormShares(settings=_TWO),
        "cot": FormShares(settings=_TWO),
    }
)
OTHER_SHARES = FormShares(settings=_TWO)

# Exemplars in mini-Flan's short prompts are one or two, laid out as its suite asks.
MINI_SHARES = FormShares(
    settings={ZS_OPT: 1 - FEW_SHOT_SHARE, FS_OPT: FEW_SHOT_SHARE},
    shots=2,
    full=0.0,
    suite_layout=1.0,
    under_definition=0.5,
    fixed_options=1.0,
)


def shares_of(mixture: str, chosen: Mapping[str, FormShares] | None = None) -> FormShares:
    """The shares of a mixture's tasks: the chosen ones, else those of the Flan collection."""
    return (chosen or {}).get(mixture) or FLAN_SHARES.get(mixture, OTHER_SHARES)


def chosen_shares(texts: Iterable[str]) -> dict[str, FormShares]:
    """Shares of mixtures written ``niv2:zs_opt=50,fs_opt=50``; the rest of them stays as it is.

    Raises:
        ValueError: A text is not so written, a mixture comes twice, or a share is out of range.
    """
    chosen: dict[str, FormShares] = {}
    for text in texts:
        mixture, _, listed = text.partition(":")
        settings = {}
        for item in listed.split(","):
            name, _, share = item.partition("=")
            try:
                settings[name.strip()] = float(share)
            except ValueError:
                raise ValueError(
                    f"settings: {text!r}: expected MIXTURE:SETTING=SHARE,... such as "
                    "niv2:zs_opt=50,fs_opt=50"
                ) from None
        if mixture in chosen:
            raise ValueError(f"settings: mixture {mixture!r} is given twice")
        chosen[mixture] = replace(shares_of(mixture), settings=settings)
    return chosen
