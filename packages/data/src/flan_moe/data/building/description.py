"""What a task source would read, as JSON: equal descriptions give equal content.

A stopped build may only be continued by one that would make the same. What a source makes is a
function and what was bound to it, so that is what is described: names and code of functions, values
of options, contents of closures. Raw files are described by their hash instead of their place.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

LONGEST = 2000  # characters of a description; a longer one is replaced by its digest


class IndescribableError(TypeError):
    """A source holds something whose content cannot be told."""


class Describer:
    """Describes values, each object once.

    Args:
        names: What to call raw files in place of their path.
    """

    def __init__(self, names: Mapping[Path, str]) -> None:
        self._names = names
        self._known: dict[int, tuple[Any, Any]] = {}
        self._inside: set[int] = set()

    def describe(self, value: Any) -> Any:
        """A JSON value that is the same for the same content, in any process.

        Raises:
            IndescribableError: Part of the value can be neither looked into nor pickled.
        """
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str):
            return _short(value)
        if isinstance(value, Path):
            return self._names.get(value, str(value))
        if id(value) in self._known:
            return self._known[id(value)][1]
        if id(value) in self._inside:
            return "(itself)"
        self._inside.add(id(value))
        try:
            found = _short(self._open(value))
        finally:
            self._inside.discard(id(value))
        self._known[id(value)] = (value, found)  # kept alive, so that no other gets its id
        return found

    def _open(self, value: Any) -> Any:
        if isinstance(value, partial):
            return {
                "function": self.describe(value.func),
                "arguments": self._list(value.args),
                "keywords": self._mapping(value.keywords),
            }
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, MethodType):
            return {"method": self.describe(value.__func__), "of": self.describe(value.__self__)}
        if isinstance(value, type | BuiltinFunctionType):
            return f"{value.__module__}.{value.__qualname__}"
        if is_dataclass(value):
            values = {field.name: getattr(value, field.name) for field in fields(value)}
            return {"type": _name(type(value)), **self._mapping(values)}
        if isinstance(value, Mapping):
            return self._mapping(value)
        if isinstance(value, list | tuple):
            return self._list(value)
        if isinstance(value, set | frozenset):
            return sorted(self._list(list(value)), key=json.dumps)
        try:
            data = pickle.dumps(value, protocol=4)
        except Exception as error:  # whatever the object's own reduction raises
            raise IndescribableError(f"{_name(type(value))}: {error}") from error
        return {"type": _name(type(value)), "sha256": hashlib.sha256(data).hexdigest()}

    def _list(self, values: Any) -> list[Any]:
        return [self.describe(value) for value in values]

    def _mapping(self, values: Mapping[Any, Any]) -> dict[str, Any]:
        return {str(key): self.describe(values[key]) for key in sorted(values, key=str)}

    def _function(self, function: FunctionType) -> dict[str, Any]:
        cells = function.__closure__ or ()
        found = {
            "function": f"{function.__module__}.{function.__qualname__}",
            "code": hashlib.sha256(json.dumps(_code(function.__code__)).encode()).hexdigest()[:16],
        }
        if cells:
            closure = {
                name: cell.cell_contents
                for name, cell in zip(function.__code__.co_freevars, cells, strict=True)
            }
            found["closure"] = self._mapping(closure)
        if function.__defaults__ or function.__kwdefaults__:
            found["defaults"] = self._list(function.__defaults__ or ())
            found["keyword_defaults"] = self._mapping(function.__kwdefaults__ or {})
        return found


def _short(value: Any) -> Any:
    text = json.dumps(value, sort_keys=True)
    if len(text) <= LONGEST:
        return value
    return {"sha256": hashlib.sha256(text.encode()).hexdigest()}


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _code(code: CodeType) -> list[Any]:
    """The instructions, names and constants of a function, without lines and file."""
    constants = [
        _code(value)
        if isinstance(value, CodeType)
        else repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)
        for value in code.co_consts
    ]
    return [code.co_code.hex(), list(code.co_names), constants]
