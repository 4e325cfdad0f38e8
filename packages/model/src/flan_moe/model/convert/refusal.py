"""One form for what a configuration may not have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn


def refuse(origin: str, key: str, value: object, expected: str) -> NoReturn:
    """Raise a ValueError that names a key, where it is from, its value and what was expected."""
    raise ValueError(f"{origin}: {key}={value!r}: expected {expected}")


def options(names: Iterable[str]) -> str:
    """The choices there are, for `refuse`."""
    return f"one of {', '.join(map(repr, names))}"
