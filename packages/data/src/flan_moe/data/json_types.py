"""What a JSON file holds, compared with the type hints of what it becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
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
        value = record[key]
        # The usual case first: a collection's tables have tens of thousands of numbers.
        good = type(value) is int and 0 <= value <= LARGEST if hint is int else hint is Any
        if not good:
            _check(hint, value, f"{where}{key}")


def check_rows(rows: Sequence[Any], hints: Mapping[str, Any], where: str) -> None:
    """`check_types` of many objects with the same keys, column by column: much faster.

    Args:
        rows: The objects.
        hints: As of `check_types`.
        where: What they are called in errors: ``where[number].key``.

    Raises:
        TypeError: As `check_types` of the first that is wrong.
    """
    try:
        good = all(_is_column(hint, [row[key] for row in rows]) for key, hint in hints.items())
    except (KeyError, TypeError, IndexError):
        good = False
    if not good:
        for number, row in enumerate(rows):
            if not isinstance(row, dict):
                raise TypeError(f"{where}[{number}] is {row!r}; expected an object")
            check_types(row, hints, f"{where}[{number}].")


def _is_column(hint: Any, values: list[Any]) -> bool:
    """Whether all values are plainly right; where not, some may still be."""
    kinds = set(map(type, values))
    if hint is int:
        return kinds <= {int} and (not values or 0 <= min(values) <= max(values) <= LARGEST)
    if hint is str:
        return kinds <= {str}
    if getattr(hint, "__origin__", None) is Mapping and hint.__args__[1] is int:
        return kinds <= {dict} and _is_column(
            int, list(chain.from_iterable(value.values() for value in values))
        )
    return hint is Any


def _check(hint: Any, value: Any, key: str) -> None:
    if hint is int:
        if type(value) is not int or not 0 <= value <= LARGEST:
            raise TypeError(f"{key} is {value!r}; expected a whole number, 0 or more")
        return
    if hint is str:
        if not isinstance(value, str):
            raise TypeError(f"{key} is {value!r}; expected text")
        return
    # As typing.get_origin and get_args, which look at many more kinds of hints.
    origin, arguments = getattr(hint, "__origin__", None), getattr(hint, "__args__", ())
    if origin is tuple and not isinstance(value, list):
        raise TypeError(f"{key} is {value!r}; expected a list")
    if origin is Mapping and not isinstance(value, dict):
        raise TypeError(f"{key} is {value!r}; expected an object")
    if origin is Mapping and arguments[1] is not Any:
        check_types(value, dict.fromkeys(value, arguments[1]), f"{key}.")
    elif origin is tuple and arguments[0] is not Any:
        for number, entry in enumerate(value):
            _check(arguments[0], entry, f"{key}[{number}]")
