"""Typed values from untyped ones: the strict reading of a recipe into frozen dataclasses.

A dataclass declares its fields with ordinary type hints; ``Annotated[float, Check(...)]`` adds a
condition and the words for it. `conform` turns a plain value into what a hint asks for, or raises
`InvalidValueError` with the path to the value, the value itself and what was expected.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from flan_moe.train.yaml_source import Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """A condition on a value, and the words an error uses for it ("a positive number")."""

    expected: str
    holds: Callable[[Any], bool]


class InvalidValueError(ValueError):
    """A value that does not conform.

    Attributes:
        path: Keys from the root of the configuration to the value.
        problem: What is wrong, without the place.
    """

    def __init__(self, path: Path, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(f"{'.'.join(map(str, path))}: {problem}" if path else problem)

    def under(self, *prefix: str | int) -> InvalidValueError:
        """The same complaint, seen from ``prefix`` levels further out."""
        return InvalidValueError((*prefix, *self.path), self.problem)


def unexpected(path: Path, value: Any, expected: str) -> InvalidValueError:
    """The complaint that ``value`` stands where ``expected`` should."""
    return InvalidValueError(path, f"expected {expected}, got {value!r}")


def suggestion(name: str, known: typing.Iterable[str]) -> str:
    """``did you mean 'lr'?`` where a known name is near, else the list of known names."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


class Validated:
    """Base of the recipe's dataclasses: checks every field against its hint on construction."""

    def __post_init__(self) -> None:
        """Check the fields, then what they say together (`check`).

        Raises:
            InvalidValueError: Naming the first field that does not conform.
        """
        hints = typing.get_type_hints(type(self), include_extras=True)
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            object.__setattr__(self, field.name, conform(hints[field.name], value, (field.name,)))
        self.check()

    def check(self) -> None:
        """Conditions that involve more than one field; raise `InvalidValueError`."""


def conform(hint: Any, value: Any, path: Path = ()) -> Any:
    """Turn a plain value into what a type hint asks for.

    Ints become floats where a float is asked for; mappings become dataclasses; of a union of
    dataclasses, the value's ``name`` chooses the one whose ``name`` field is that literal.
    Nothing else is converted: ``"3"`` is not a number and ``1`` is not a boolean.

    Args:
        hint: A type hint built from bool, int, float, str, Any, None, Literal, tuple, dict,
            dataclasses, unions of these, and Annotated with a `Check`.
        value: The value to read.
        path: Where the value sits, for errors.

    Raises:
        InvalidValueError: If the value does not conform.
    """
    check = None
    if typing.get_origin(hint) is Annotated:
        hint, check = typing.get_args(hint)
    value = _conform_plain(hint, value, path, check.expected if check else None)
    if check is not None and not check.holds(value):
        raise unexpected(path, value, check.expected)
    return value


def _conform_plain(hint: Any, value: Any, path: Path, expected: str | None) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _conform_union(arguments, value, path)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool) != isinstance(arguments[0], bool):
            words = " or ".join(repr(a) for a in arguments)
            raise unexpected(path, value, expected or words)
        return value
    if origin is dict:
        if not isinstance(value, Mapping):
            raise unexpected(path, value, expected or "a mapping")
        item = arguments[1]
        return {key: conform(item, entry, (*path, key)) for key, entry in value.items()}
    if origin is tuple:
        return _conform_tuple(arguments, value, path, expected)
    if dataclasses.is_dataclass(hint):
        return _conform_dataclass(hint, value, path)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    raise unexpected(path, value, expected or words.get(hint, hint.__name__))


def _conform_union(arguments: tuple[Any, ...], value: Any, path: Path) -> Any:
    if value is None and type(None) in arguments:
        return None
    members = [a for a in arguments if a is not type(None)]
    if len(members) == 1:
        return conform(members[0], value, path)
    if any(isinstance(value, member) for member in members):
        return value
    # A union of dataclasses: each names itself with a Literal, and the value says which it is.
    by_name = {
        typing.get_args(typing.get_type_hints(member)["name"])[0]: member for member in members
    }
    if not isinstance(value, Mapping):
        raise unexpected(path, value, f"a mapping with a name ({', '.join(by_name)})")
    if "name" not in value:
        raise InvalidValueError((*path, "name"), f"missing; one of {', '.join(by_name)}")
    if value["name"] not in by_name:
        hint = suggestion(str(value["name"]), by_name)
        words = " or ".join(repr(n) for n in by_name)
        raise InvalidValueError((*path, "name"), f"expected {words}, got {value['name']!r}; {hint}")
    return conform(by_name[value["name"]], value, path)


def _conform_tuple(
    arguments: tuple[Any, ...], value: Any, path: Path, expected: str | None
) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise unexpected(path, value, expected or "a list")
    if arguments[-1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(value) != len(arguments):
        raise unexpected(path, value, expected or f"a list of {len(arguments)}")
    return tuple(
        conform(hint, entry, (*path, index))
        for index, (hint, entry) in enumerate(zip(arguments, value, strict=True))
    )


def _conform_dataclass(cls: Any, value: Any, path: Path) -> Any:
    if isinstance(value, cls):
        return value
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if not isinstance(value, Mapping):
        raise unexpected(path, value, f"a mapping with the keys {', '.join(fields)}")
    for key in value:
        if key not in fields:
            raise InvalidValueError((*path, key), f"unknown key; {suggestion(key, fields)}")
    for name, field in fields.items():
        optional = (
            field.default is not dataclasses.MISSING
            or field.default_factory is not dataclasses.MISSING
        )
        if name not in value and not optional:
            raise InvalidValueError((*path, name), "missing")
    try:
        return cls(**value)
    except InvalidValueError as error:
        raise error.under(*path) from None
