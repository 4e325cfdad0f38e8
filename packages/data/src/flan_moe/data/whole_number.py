"""Arguments that are whole numbers: refused by name before they can fail somewhere inside."""

from __future__ import annotations

import operator
from typing import Any

_BOUNDS = {0: "a whole number, 0 or more", 1: "a positive whole number"}


def check_whole(key: str, value: Any, *, least: int = 1) -> None:
    """Check that an argument is a whole number (of numpy too) of at least 0 or 1.

    Raises:
        ValueError: It is not; names it.
    """
    try:
        good = not isinstance(value, bool) and operator.index(value) >= least
    except TypeError:
        good = False
    if not good:
        raise ValueError(f"{key} is {value!r}; expected {_BOUNDS[least]}")
