"""What a JSON file holds, compared with the type hints of what it becomes."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

LARGEST = 2**63 - 1


def check_types(record: Mapping[str, Any], hints: Mapping[str, Any], where: str = "") -> None:
    """Check that every hinted key is there with a value of its type.

    Args:
        record: A JSON object.
        hints: Key, then ``int`` (0 or more, at most 64 bits), ``str``, ``Any``,
            ``Mapping[str, hint]`` or ``tuple[hint, ...]``.
        where: Prefix of the keys in errors.

    Raises:
        TypeError: Names the key, the value and what was expected.
    """
    for key, hint in hints.items():
        if key not in record:
            raise TypeError(f"{where}{key}: missing")
        _check(hint, record[key], f"{where}{key}")


def _check(hint: Any, value: Any, key: str) -> None:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is int:
        good, expected = type(value) is int and 0 <= value <= LARGEST, "a whole number, 0 or more"
    elif hint is str:
        good, expected = isinstance(value, str), "text"
    elif origin is tuple:
        good, expected = isinstance(value, list), "a list"
    elif origin is Mapping:
        good, expected = isinstance(value, dict), "an object"
    else:
        return
    if not good:
        raise TypeError(f"{key} is {value!r}; expected {expected}")
    if origin is Mapping:
        check_types(value, dict.fromkeys(value, arguments[1]), f"{key}.")
    elif origin is tuple:
        for number, entry in enumerate(value):
            _check(arguments[0], entry, f"{key}[{number}]")
