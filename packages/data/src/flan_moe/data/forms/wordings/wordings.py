"""What a set of wordings is, and how a problem is put into one of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flan_moe.data.forms.options import without_options
from flan_moe.data.forms.style import Style
from flan_moe.data.prompts import fill

_PLACE = re.compile(r"\{([a-z_]+)\}")


@dataclass(frozen=True, kw_only=True)
class Wordings:
    """Ways to ask the problems of one kind of task.

    Attributes:
        zero_shot: Whole prompts, with a ``{name}`` place for each field of a problem and, where
            answers are chosen, one ``{options}``.
        few_shot: As many wordings for one block of a few-shot prompt; prefixes such as "Answer:"
            are the pattern's.
    """

    zero_shot: tuple[str, ...]
    few_shot: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check that all wordings ask for the same.

        Raises:
            ValueError: A wording has other places than the first, or the numbers differ.
        """
        if len(self.zero_shot) != len(self.few_shot):
            raise ValueError(
                f"{len(self.zero_shot)} zero-shot and {len(self.few_shot)} few-shot wordings; "
                "expected as many of each"
            )
        for wording in (*self.zero_shot, *self.few_shot):
            if set(_PLACE.findall(wording)) != self.places:
                raise ValueError(f"wording {wording!r}: expected places {sorted(self.places)}")

    @property
    def places(self) -> set[str]:
        """Names of the places, ``options`` included."""
        return set(_PLACE.findall(self.zero_shot[0]))

    def prompt(self, fields: Mapping[str, str], options: Sequence[str] | None, style: Style) -> str:
        """A problem in a style.

        Raises:
            ValueError: A field is missing.
        """
        wording = (self.few_shot if style.brief else self.zero_shot)[style.template]
        if options is None or style.options is None:
            return fill(without_options(wording), fields)
        return fill(wording, {**fields, "options": style.options.listing(options)})
