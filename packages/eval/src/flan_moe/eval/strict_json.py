"""Reading JSON objects strictly: every complaint names the place, the key and what was expected."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

# Half of a UTF-16 pair, written as an escape: JSON allows it, but no file or terminal can hold it.
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

Choice = TypeVar("Choice", bound=str)
Value = TypeVar("Value")


def parse_json(raw: bytes, where: str) -> object:
    """Decode one JSON value.

    Args:
        raw: UTF-8 bytes.
        where: File, or file and line, for the error.

    Raises:
        ValueError: ``raw`` is not UTF-8, not JSON, nested too deeply, repeats a key or holds NaN,
            an infinity or half a character.
    """
    try:
        value = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_distinct, parse_constant=_refuse_constant
        )
        if _SURROGATE_ESCAPE.search(raw):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(f"{where}: {half!r} is half of a character, not text") from None
    except RecursionError:
        raise ValueError(f"{where}: nested too deeply to be read") from None
    except json.JSONDecodeError as error:
        at = (
            f"line {error.lineno} column {error.colno}"
            if error.lineno > 1
            else f"column {error.colno}"
        )
        raise ValueError(f"{where}: not JSON at {at}: {error.msg}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(k for k in keys if keys.count(k) > 1)!r} is repeated")
    return record


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


@dataclass(frozen=True)
class Checked:
    """A JSON object whose values are read with their type checked.

    Attributes:
        record: The object.
        where: File, line or path inside the file, for errors.
    """

    record: Mapping[str, Any]
    where: str

    @classmethod
    def of(cls, value: object, where: str) -> Checked:
        """Wrap ``value``.

        Raises:
            ValueError: It is not an object.
        """
        if not isinstance(value, dict):
            raise ValueError(f"{where}: {_shown(value)}; expected a JSON object")
        return cls(value, where)

    def _wrong(self, key: str, expected: str) -> ValueError:
        return ValueError(f"{self.where}: {key}: {_shown(self.record[key])}; expected {expected}")

    def _value(self, key: str) -> Any:
        if key not in self.record:
            raise ValueError(f"{self.where}: key {key!r} is missing")
        return self.record[key]

    def optional(self, key: str, read: Callable[[str], Value]) -> Value | None:
        """None where the key holds null, else what ``read`` makes of it; the key must be there."""
        return None if self._value(key) is None else read(key)

    def only_keys(self, *known: str) -> None:
        """Refuse keys that are not in ``known``."""
        for key in self.record:
            if key not in known:
                raise ValueError(f"{self.where}: unknown key {key!r}; expected {list(known)}")

    def get(self, key: str) -> object:
        """The raw value, None if absent."""
        return self.record.get(key)

    def literal(self, key: str, expected: str | int) -> None:
        """Refuse anything but ``expected``."""
        value = self._value(key)
        if value != expected or isinstance(value, bool):
            raise self._wrong(key, repr(expected))

    def text(self, key: str, *, empty: bool = False) -> str:
        """A string, not blank unless allowed."""
        value = self._value(key)
        if not isinstance(value, str):
            raise self._wrong(key, "a string")
        if not value.strip() and not empty:
            raise self._wrong(key, "a string that is not blank")
        return value

    def name(self, key: str) -> str:
        """A string that is safe as part of a file name."""
        value = self.text(key)
        if not _NAME.fullmatch(value):
            raise self._wrong(key, "letters, digits, '_', '-' and '.', starting with the first two")
        return value

    def file_name(self, key: str) -> str:
        """A plain file name: no folder, so that a suite cannot point outside its own folder."""
        value = self.text(key)
        if not _NAME.fullmatch(value):
            raise self._wrong(key, "a plain file name in the folder of suite.json")
        return value

    def choice(self, key: str, allowed: Sequence[Choice]) -> Choice:
        """One of ``allowed``."""
        value = self._value(key)
        if not isinstance(value, str) or value not in allowed:
            raise self._wrong(key, f"one of {list(allowed)}")
        return next(known for known in allowed if known == value)

    def boolean(self, key: str) -> bool:
        """True or false."""
        value = self._value(key)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def integer(self, key: str) -> int:
        """A whole number, zero or more."""
        value = self._value(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self._wrong(key, "a whole number, zero or more")
        return value

    def number(self, key: str) -> float:
        """A finite number."""
        value = self._value(key)
        if not _is_finite(value):
            raise self._wrong(key, "a number")
        return float(value)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings that are not blank."""
        value = self._value(key)
        if not isinstance(value, list) or not all(isinstance(v, str) and v.strip() for v in value):
            raise self._wrong(key, "a list of strings that are not blank")
        return tuple(value)

    def integers(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers, zero or more."""
        value = self._value(key)
        whole = isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)
        if not whole:
            raise self._wrong(key, "a list of whole numbers, zero or more")
        return tuple(value)

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of finite numbers."""
        value = self._value(key)
        if not isinstance(value, list) or not all(map(_is_finite, value)):
            raise self._wrong(key, "a list of numbers")
        return tuple(float(v) for v in value)

    def mapping(self, key: str) -> Checked:
        """A nested object."""
        return Checked.of(self._value(key), f"{self.where}: {key}")

    def items(self, key: str) -> list[Checked]:
        """A list of nested objects."""
        value = self._value(key)
        if not isinstance(value, list):
            raise self._wrong(key, "a list of JSON objects")
        return [
            Checked.of(entry, f"{self.where}: {key}[{index}]") for index, entry in enumerate(value)
        ]


def _is_finite(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
