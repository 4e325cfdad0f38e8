"""YAML files that strangers write: plain values, each with the line it stands on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from flan_moe.data.suggestion import suggestion

MAX_BYTES = 1 << 20
MAX_VALUES = 50_000
"""Values with aliases written out: a few lines of aliases can stand for billions."""

_PLAIN_TAGS = ("tag:yaml.org,2002:seq", "tag:yaml.org,2002:map")

Path = tuple[str | int, ...]
"""Keys and indices from the root to a value."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader; numbers such as ``1e-3`` are numbers, as YAML 1.2 has it."""


# add_implicit_resolver copies the table of the parent class before it writes.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(?:\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


@dataclass(frozen=True, kw_only=True)
class Document:
    """One document.

    Attributes:
        name: What errors call it.
        root: Its value: dicts, lists and scalars.
        lines: Path of a value, then its line, counted from 1.
    """

    name: str
    root: Any
    lines: Mapping[Path, int]

    def error(self, path: Path, message: str) -> ValueError:
        """An error that names the file, the line and the key at ``path``, to be raised."""
        known = next(path[:n] for n in range(len(path), -1, -1) if path[:n] in self.lines)
        key = ".".join(map(str, path))
        return ValueError(f"{self.name}:{self.lines[known]}: {key}{' ' if key else ''}{message}")

    def value(self, path: Path) -> Any:
        """The value at a path.

        Raises:
            ValueError: It is missing.
        """
        value = self.root
        for key in path:
            try:
                value = value[key]
            except (KeyError, IndexError):
                raise self.error(path, "is missing") from None
        return value

    def mapping(self, path: Path, *, allowed: Iterable[str] | None = None) -> Mapping[str, Any]:
        """A mapping with no keys but those allowed.

        Raises:
            ValueError: It is something else, or has another key; suggests the one that was meant.
        """
        value = self.value(path)
        if not isinstance(value, dict):
            raise self.error(path, f"is {_short(value)}; expected keys and values")
        if allowed is not None:
            allowed = tuple(allowed)
            for key in value:
                if key not in allowed:
                    hint = suggestion(key, allowed)
                    known = ", ".join(allowed)
                    raise self.error((*path, key), f"is no known key{hint}; expected {known}")
        return value

    def sequence(self, path: Path) -> Sequence[Any]:
        """A list.

        Raises:
            ValueError: It is something else.
        """
        value = self.value(path)
        if not isinstance(value, list):
            raise self.error(path, f"is {_short(value)}; expected a list")
        return value

    def text(self, path: Path) -> str:
        """A text.

        Raises:
            ValueError: It is something else.
        """
        value = self.value(path)
        if not isinstance(value, str):
            raise self.error(path, f"is {_short(value)}; expected text")
        return value

    def texts(self, path: Path) -> tuple[str, ...]:
        """A list of texts.

        Raises:
            ValueError: It is something else.
        """
        return tuple(self.text((*path, index)) for index in range(len(self.sequence(path))))

    def number(self, path: Path) -> float:
        """A number.

        Raises:
            ValueError: It is something else.
        """
        value = self.value(path)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(path, f"is {_short(value)}; expected a number")
        return value

    def whole_number(self, path: Path) -> int:
        """A whole number.

        Raises:
            ValueError: It is something else.
        """
        value = self.value(path)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(path, f"is {_short(value)}; expected a whole number")
        return value


def read_yaml(text: str, name: str) -> Document:
    """Parse one document with the safe loader.

    Args:
        text: The document.
        name: What errors call it.

    Raises:
        ValueError: It is no YAML, not one document, too large, too deep, gives a key twice, has a
            key that is no text, or an alias that contains itself; names file and line.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"{name}: {len(text):,} characters; expected at most {MAX_BYTES:,}")
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        lines: dict[Path, int] = {(): 1}
        root = None if node is None else _read(loader, node, (), name, lines, frozenset())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ValueError(f"{name}{line}: not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{name}: not YAML: {error}") from error
    except RecursionError:
        raise ValueError(f"{name}: nested too deeply") from None
    finally:
        if loader is not None:
            loader.dispose()
    return Document(name=name, root=root, lines=lines)


def _read(
    loader: _Loader,
    node: yaml.Node,
    path: Path,
    name: str,
    lines: dict[Path, int],
    above: frozenset[int],
) -> Any:
    line = node.start_mark.line + 1
    lines.setdefault(path, line)
    if len(lines) > MAX_VALUES:
        raise ValueError(f"{name}:{line}: more than {MAX_VALUES:,} values, aliases written out")
    if id(node) in above:
        raise ValueError(f"{name}:{line}: an alias that contains itself")
    above |= {id(node)}
    if isinstance(node, yaml.CollectionNode) and node.tag not in _PLAIN_TAGS:
        raise ValueError(f"{name}:{line}: tag {node.tag!r}; expected plain lists and mappings")
    if isinstance(node, yaml.SequenceNode):
        return [
            _read(loader, child, (*path, index), name, lines, above)
            for index, child in enumerate(node.value)
        ]
    if not isinstance(node, yaml.MappingNode):
        return _scalar(loader, node, f"{name}:{line}")
    result: dict[str, Any] = {}
    for key_node, child in node.value:
        key_line = key_node.start_mark.line + 1
        is_scalar = isinstance(key_node, yaml.ScalarNode)
        key = _scalar(loader, key_node, f"{name}:{key_line}") if is_scalar else None
        if not isinstance(key, str):
            raise ValueError(f"{name}:{key_line}: key {key_node.value!r}; expected a name")
        if key in result:
            raise ValueError(f"{name}:{key_line}: {'.'.join(map(str, (*path, key)))} given twice")
        lines[*path, key] = key_line  # blame the key, not the first line of what it holds
        result[key] = _read(loader, child, (*path, key), name, lines, above)
    return result


def _scalar(loader: _Loader, node: yaml.Node, place: str) -> Any:
    try:
        value = loader.construct_object(node, deep=True)
    except (ValueError, AttributeError, KeyError) as error:  # `2024-99-99`, `!!bool maybe`
        raise ValueError(f"{place}: not YAML: {node.value!r} has no such value") from error
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{place}: {_short(value)}; expected numbers of at most 64 bits")
    return value


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
