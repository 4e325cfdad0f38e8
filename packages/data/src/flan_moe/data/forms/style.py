"""What the blocks of one prompt have in common."""

from __future__ import annotations

from dataclasses import dataclass

from flan_moe.data.forms.options import FIXED, OptionStyle


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a problem is put into words; every block of a few-shot prompt has the same style.

    Attributes:
        template: Index of the wording.
        options: How answer options are listed; None leaves them out.
        cue: The line that asks for reasoning; None asks for the answer at once.
        brief: Whether the wording is one for a block of a few-shot pattern.
    """

    template: int
    options: OptionStyle | None = FIXED
    cue: str | None = None
    brief: bool = False
