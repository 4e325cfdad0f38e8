"""The longest prompt that is short enough, found with few questions to the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")

BACK = 0.8  # of a length that was too long: what is tried next
ONWARD = 1.03  # from prompt to prompt, so that one unusual text does not shorten all that follow


class LengthBudget:
    """Remembers about how many characters fit, so that hopeless prompts are not even tokenised.

    What is accepted has always been asked for; only refusals may be guesses. The memory belongs to
    one pass over one task, so equal passes agree.

    Args:
        fits: Whether a prompt is short enough; costly.
    """

    def __init__(self, fits: Callable[[str], bool]) -> None:
        self._fits = fits
        self._characters = math.inf

    def first_fit(self, candidates: Iterable[tuple[str, T]]) -> tuple[str, T] | None:
        """The first of the prompts that fits, with what came with it.

        Args:
            candidates: Prompts, longest first.
        """
        self._characters *= ONWARD
        for prompt, extra in candidates:
            if len(prompt) > self._characters:
                continue
            if self._fits(prompt):
                return prompt, extra
            self._characters = BACK * len(prompt)
        return None
