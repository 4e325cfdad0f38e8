"""How much a template may do with a row, counted in characters and steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

MOST_WORK = 4_000_000
PER_STEP = 16  # what one pass through a loop costs


class TemplateTooCostlyError(ValueError):
    """A template wants to do more than a prompt can need."""


class Work:
    """What is left of it."""

    def __init__(self) -> None:
        self.left = MOST_WORK

    def spend(self, amount: int) -> None:
        """Take from it, before the work is done.

        Raises:
            TemplateTooCostlyError: Less than that is left.
        """
        self.left -= amount
        if self.left < 0:
            raise TemplateTooCostlyError(
                f"it wants to do more than {MOST_WORK:,} characters of work on one row"
            )

    def measured(self, value: Any) -> Any:
        """The value itself, after paying for the length of its text, containers included.

        What is nested is counted as often as it occurs, so a list of lists of lists that share
        their items is refused before anybody walks through it.
        """
        waiting = [value]
        while waiting:
            one = waiting.pop()
            if isinstance(one, str):
                self.spend(1 + len(one))
            elif isinstance(one, dict):
                self.spend(1)
                waiting.extend(one)
                waiting.extend(one.values())
            elif isinstance(one, list | tuple):
                self.spend(1 + len(one))
                waiting.extend(one)
            else:
                self.spend(1)
        return value

    def steps(self, values: Iterable[Any]) -> list[Any]:
        """What a loop runs over, after paying for every pass."""
        items = []
        for value in values:
            self.spend(PER_STEP)
            items.append(value)
        return items
