"""YAML with line numbers: plain values beside the place each of them was written."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

Path = tuple[str | int, ...]
"""Where a value sits in the document: mapping keys and sequence indices from the root."""


MAX_VALUES = 100_000
"""Values of a document with its aliases written out; a few lines of aliases can mean billions."""


class SourceError(ValueError):
    """A document that cannot be read; the message starts with ``file:line``."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with YAML 1.2 floats.

    YAML 1.1, which PyYAML follows, reads ``1e-4`` as a string because it has no dot; nobody who
    writes a learning rate means that.
    """


_Loader.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+"),
    list("-+0123456789"),
)


@dataclass(kw_only=True)
class Document:
    """A parsed document.

    Attributes:
        tree: The plain value: dicts, lists and scalars.
        places: For each path, where it was written: ``"recipe.yaml:14"`` or the text of an
            override.
        name: What to call the document where no line is known.
    """

    tree: Any
    places: dict[Path, str] = field(default_factory=dict)
    name: str

    def place(self, path: Path) -> str:
        """Where ``path`` was written, or the nearest enclosing value when it was not written."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return self.name


def parse(text: str, name: str) -> Document:
    """Read one YAML document.

    Args:
        text: The document.
        name: Its name in error messages, usually the file name.

    Raises:
        SourceError: If the text is not YAML, is not a single document, has a duplicate or
            non-string key, an alias that contains itself, a whole number of more than 64 bits, or
            more than `MAX_VALUES` values.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        document = Document(tree=None, name=name)
        if node is not None:
            document.tree = _read(loader, node, (), document, ())
        return document
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = name if mark is None else f"{name}:{mark.line + 1}"
        raise SourceError(f"{place}: not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise SourceError(f"{name}: not valid YAML: {error}") from error
    except RecursionError:  # in PyYAML, at any place
        raise SourceError(f"{name}: nested too deeply") from None
    finally:
        if loader is not None:
            loader.dispose()


def _read(
    loader: _Loader, node: yaml.Node, path: Path, document: Document, open_: tuple[yaml.Node, ...]
) -> Any:
    place = f"{document.name}:{node.start_mark.line + 1}"
    document.places.setdefault(path, place)
    if len(document.places) > MAX_VALUES:
        raise SourceError(f"{place}: more than {MAX_VALUES:,} values, aliases written out")
    if node in open_:
        raise SourceError(f"{place}: an alias that contains itself")
    if isinstance(node, yaml.ScalarNode):
        return _construct(loader, node, place)
    if isinstance(node, yaml.SequenceNode):
        return [
            _read(loader, child, (*path, index), document, (*open_, node))
            for index, child in enumerate(node.value)
        ]
    tree: dict[str, Any] = {}
    for key_node, child in node.value:
        key_place = f"{document.name}:{key_node.start_mark.line + 1}"
        key = _construct(loader, key_node, key_place)
        if not isinstance(key, str):
            raise SourceError(f"{key_place}: expected a name as key, got {key!r}")
        if key in tree:
            raise SourceError(f"{key_place}: {'.'.join(map(str, (*path, key)))}: given twice")
        # A section is blamed at its key, not at the line its first entry happens to stand on.
        document.places[(*path, key)] = key_place
        tree[key] = _read(loader, child, (*path, key), document, (*open_, node))
    return tree


def _construct(loader: _Loader, node: yaml.Node, place: str) -> Any:
    """The value of a scalar or of a key."""
    try:
        value = loader.construct_object(node, deep=True)
    except ValueError as error:  # 2024-99-99 looks like a date and is none
        raise SourceError(f"{place}: not valid YAML: {error}") from error
    except (AttributeError, KeyError) as error:  # what PyYAML makes of `!!bool maybe`
        tag = node.tag.rpartition(":")[2]
        raise SourceError(f"{place}: not valid YAML: {node.value!r} is no {tag}") from error
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise SourceError(f"{place}: expected whole numbers of at most 64 bits")
    return value
