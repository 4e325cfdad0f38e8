"""Recipes on disk: YAML in, with overrides; YAML out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from flan_moe.train import yaml_source
from flan_moe.train.conform import InvalidValueError, conform
from flan_moe.train.recipe_schema import Recipe


class RecipeError(ValueError):
    """A recipe that is refused; the message says where, which key, which value, and why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedRecipe:
    """A recipe and where each of its values was written.

    Attributes:
        recipe: The recipe.
        document: The document it came from.
    """

    recipe: Recipe
    document: yaml_source.Document

    def error(self, key: str, problem: str) -> RecipeError:
        """A `RecipeError` about ``key`` ("data.path"), pointing at the line that set it."""
        return _located(InvalidValueError(tuple(key.split(".")), problem), self.document)

    def folder(self, key: str) -> Path:
        """Where a relative path at ``key`` starts: at the file that says it, else right here."""
        written = self.document.place(tuple(key.split("."))).startswith(f"{self.document.name}:")
        return Path(self.document.name).parent if written else Path()


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> LoadedRecipe:
    """Read a recipe file.

    Args:
        path: A YAML file, or the name of a recipe that ships with the package ("mini_sparse").
        overrides: ``key=value`` strings applied on top, e.g. ``optimizer.lr=3e-4``; values are
            YAML.

    Returns:
        The recipe with the place of each value.

    Raises:
        RecipeError: If the file cannot be read, or anything in it or in the overrides is wrong.
    """
    path = Path(path)
    if not path.exists() and path.name == str(path) and path.name in shipped_recipes():
        path = shipped_recipes()[path.name]
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        shipped = ", ".join(sorted(shipped_recipes()))
        raise RecipeError(
            f"{path}: cannot read the recipe: {reason} (shipped: {shipped})"
        ) from None
    return read_recipe(text, str(path), overrides)


def read_recipe(text: str, name: str, overrides: Iterable[str] = ()) -> LoadedRecipe:
    """Read a recipe from text; see `load_recipe`. ``name`` stands for the file in errors."""
    try:
        document = yaml_source.parse(text, name)
        if document.tree is None:
            document.tree = {}
        for override in overrides:
            _apply(override, document)
    except yaml_source.SourceError as error:
        raise RecipeError(str(error)) from None
    try:
        return LoadedRecipe(recipe=conform(Recipe, document.tree), document=document)
    except InvalidValueError as error:
        raise _located(error, document) from None


def located(recipe: Recipe, name: str = "recipe") -> LoadedRecipe:
    """A recipe built in Python, with ``name`` as the place of all its values."""
    return LoadedRecipe(
        recipe=recipe, document=yaml_source.Document(tree=as_tree(recipe), name=name)
    )


def as_tree(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain dicts, lists and scalars, every default spelled out."""
    return _plain(dataclasses.asdict(recipe))


def as_yaml(recipe: Recipe) -> str:
    """The recipe as YAML that `read_recipe` reads back equal."""
    return yaml.safe_dump(as_tree(recipe), sort_keys=False, allow_unicode=True)


def shipped_recipes() -> dict[str, Path]:
    """Recipes that come with the package, by name."""
    return {p.stem: p for p in sorted((Path(__file__).parent / "recipes").glob("*.yaml"))}


def differences(old: Recipe, new: Recipe) -> list[str]:
    """``key: old value -> new value`` for every key in which two recipes differ."""
    return tree_differences(as_tree(old), as_tree(new))


def tree_differences(old: Any, new: Any) -> list[str]:
    """The same of any two trees of mappings, lists and scalars."""
    return list(_differences(old, new, ""))


def _located(error: InvalidValueError, document: yaml_source.Document) -> RecipeError:
    return RecipeError(f"{document.place(error.path)}: {error}")


def _apply(override: str, document: yaml_source.Document) -> None:
    place = f"override {override!r}"
    key, equals, text = override.partition("=")
    path = tuple(key.split("."))
    if not equals or not all(path):
        raise RecipeError(f"{place}: expected key=value, such as optimizer.lr=3e-4")
    try:
        value = yaml_source.parse(text, place).tree
    except yaml_source.SourceError:
        raise RecipeError(f"{place}: the value is not valid YAML") from None
    tree = document.tree
    if not isinstance(tree, dict):
        raise RecipeError(f"{document.name}: expected a mapping, got {tree!r}")
    for depth, part in enumerate(path[:-1], start=1):
        if tree.get(part) is None:
            tree[part] = {}
            document.places[path[:depth]] = place
        tree = tree[part]
        if not isinstance(tree, dict):
            inner = ".".join(path[:depth])
            raise RecipeError(f"{place}: {inner} is {tree!r}, which has no keys")
    tree[path[-1]] = value
    # Everything at or below the key now comes from the command line.
    for old in [p for p in document.places if p[: len(path)] == path]:
        del document.places[old]
    document.places[path] = place


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value


def _differences(old: Any, new: Any, key: str) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for part in sorted(old.keys() | new.keys()):
            inner = f"{key}.{part}" if key else part
            yield from _differences(old.get(part), new.get(part), inner)
    elif old != new:
        yield f"{key}: {old!r} -> {new!r}"
