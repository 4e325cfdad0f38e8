"""Mixtures from YAML: a preset by name, or a file.

name: mine                  # the keys are the attributes of MixtureSpec and SubMixture
base: flan2022              # optional: start from a preset, or a file beside this one
only: [niv2, cot]           # optional, with a base: which of its sub-mixtures to keep
sub_mixtures:
  cot: {weight: 0.1}        # of a sub-mixture of the base, only what changes
held_out: ["@gsm8k"]        # added to the base's
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from flan_moe.data.mixing.spec import MixtureSpec, SubMixture
from flan_moe.data.suggestion import suggestion
from flan_moe.data.yaml_file import Document, read_yaml
from flan_moe.data.yaml_file import Path as Key

MAX_BASES = 8

_KEYS = ("name", "description", "base", "only", "sub_mixtures", "held_out")
_TEXTS = ("mixtures", "tasks", "without")
_NUMBERS = ("weight", "temperature")
_TABLES = ("factors", "template_shares")
_SUB_KEYS = ("weight", "mixtures", "tasks", "without", "cap", "temperature", *_TABLES)


def preset_names() -> tuple[str, ...]:
    """Names of the packaged mixtures, in order of the alphabet."""
    folder = files("flan_moe.data.mixing") / "presets"
    names = (file.name for file in folder.iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml")))


def load_mixture(name: str | Path) -> MixtureSpec:
    """Read a mixture.

    Args:
        name: A preset, or the path of a file; what ends in ``.yaml`` or ``.yml`` or has a
            directory is a path.

    Raises:
        ValueError: There is no such preset or file, or something in it is wrong; names the file,
            line, key, value and what was expected.
    """
    return _load(name, folder=None, above=())


def _load(name: str | Path, *, folder: Path | None, above: tuple[str, ...]) -> MixtureSpec:
    document, home = _read(name, folder)
    if document.name in above or len(above) == MAX_BASES:
        chain = " of ".join((document.name, *reversed(above)))
        raise ValueError(f"{above[-1]}: base goes round in a circle or too deep: {chain}")
    tree = document.mapping((), allowed=_KEYS)
    base = None
    if "base" in tree:
        try:
            base = _load(document.text(("base",)), folder=home, above=(*above, document.name))
        except NoSuchMixtureError as error:
            raise document.error(("base",), f"cannot be read: {error}") from None
    if "only" in tree and base is None:
        raise document.error(("only",), "needs a base to choose from")
    return _build(document, tree, base)


def _read(name: str | Path, folder: Path | None) -> tuple[Document, Path | None]:
    """The document, and the folder that a relative base starts from."""
    path = Path(name)
    if isinstance(name, str) and path.suffix not in (".yaml", ".yml") and path.name == name:
        if name not in preset_names():
            hint = suggestion(name, preset_names())
            known = ", ".join(preset_names())
            raise NoSuchMixtureError(
                f"no mixture {name!r}{hint}; expected one of {known}, or the path of a .yaml file"
            )
        file = files("flan_moe.data.mixing") / "presets" / f"{name}.yaml"
        return read_yaml(file.read_text(encoding="utf-8"), f"presets/{file.name}"), None
    path = (folder or Path()) / path
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NoSuchMixtureError(f"{path}: no such file; expected a mixture") from None
    except (IsADirectoryError, NotADirectoryError):
        raise ValueError(f"{path}: not a file; expected a mixture") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {error}") from error
    except ValueError as error:
        raise NoSuchMixtureError(f"{str(path)!r}: no name of a file: {error}") from None
    return read_yaml(text, str(path)), path.parent


class NoSuchMixtureError(ValueError):
    """There is no such preset or file."""


def _build(document: Document, tree: Mapping[str, Any], base: MixtureSpec | None) -> MixtureSpec:
    subs = dict(base.sub_mixtures) if base is not None else {}
    if "only" in tree:
        for index, name in enumerate(document.texts(("only",))):
            if name not in subs:
                known = ", ".join(subs)
                raise document.error(("only", index), f"is {name!r}; expected one of {known}")
        subs = {name: subs[name] for name in document.texts(("only",))}
    if base is None or "sub_mixtures" in tree:
        for name in document.mapping(("sub_mixtures",)):
            subs[name] = _sub_mixture(document, name, subs.get(name))
    held_out = base.held_out if base is not None else ()
    if "held_out" in tree:
        added = document.texts(("held_out",))
        held_out = tuple(dict.fromkeys((*held_out, *added)))
    try:
        return MixtureSpec(
            name=document.text(("name",)),
            description=document.text(("description",)) if "description" in tree else "",
            sub_mixtures=subs,
            held_out=held_out,
        )
    except ValueError as error:
        if str(error).startswith(document.name):
            raise
        raise ValueError(f"{document.name}: {error}") from error


def _sub_mixture(document: Document, name: str, base: SubMixture | None) -> SubMixture:
    at: Key = ("sub_mixtures", name)
    given = document.mapping(at, allowed=_SUB_KEYS)
    values: dict[str, Any] = {key: document.texts((*at, key)) for key in _TEXTS if key in given}
    values |= {key: document.number((*at, key)) for key in _NUMBERS if key in given}
    if "cap" in given:
        cap = given["cap"]
        values["cap"] = None if cap is None else document.whole_number((*at, "cap"))
    for key in _TABLES:
        if key in given:
            empty = None if key == "template_shares" else {}
            table = given[key] if given[key] is None else document.mapping((*at, key))
            values[key] = (
                empty
                if table is None
                else {entry: document.number((*at, key, entry)) for entry in table}
            )
    if base is not None:
        values = {key: getattr(base, key) for key in _SUB_KEYS} | values
    for key in ("weight", "mixtures"):
        if key not in values:
            raise document.error((*at, key), "is missing")
    try:
        return SubMixture(**values)
    except ValueError as error:
        # The message starts with the key that is wrong, so that its line can be named.
        line = document.lines[at]
        for path, number in document.lines.items():
            key = ".".join(map(str, path[len(at) :]))
            if path[: len(at)] == at and key and str(error).startswith(key):
                line = number
        raise ValueError(f"{document.name}:{line}: {'.'.join(at)}.{error}") from error
