"""The catalogue: where public data lie, what every file's content hashes to, and on which terms.

An entry is a packaged JSON file. Files are pinned twice: by the commit in their address, and by the
hash that git itself gives their content; where the content was seen, by its sha256 too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from flan_moe.data.json_types import check_types
from flan_moe.data.storage.directory_lock import LOCK_FILE

ENTRIES = "entries"
SOURCE_FILE = "SOURCE.json"
PART = ".part"
RESERVED = (SOURCE_FILE, LOCK_FILE)  # beside the files, in the entry's directory
SUFFIX = ".json"
_OPTIONAL = {"sha256": str, "bytes": int}


@dataclass(frozen=True, kw_only=True)
class CatalogueFile:
    """One file.

    Attributes:
        path: Below the base address.
        save_as: Below the directory of the entry.
        git_blob: The name that git gives the content: sha1 of a header and the bytes.
        sha256: Of the bytes, or None where only git's name is known.
        bytes: The size, or None where it is not known.
    """

    path: str
    save_as: str
    git_blob: str
    sha256: str | None = None
    bytes: int | None = None

    def __post_init__(self) -> None:
        """Check the names.

        Raises:
            ValueError: One would leave its directory or is kept for other things, the size is
                negative, or a hash is malformed.
        """
        for key in ("path", "save_as"):
            value = getattr(self, key)
            if not _is_inside(value):
                raise ValueError(f"{key} is {value!r}; expected a relative path without '..'")
        if self.save_as in RESERVED or self.save_as.endswith(PART):
            raise ValueError(f"save_as is {self.save_as!r}; that name is kept for fetch itself")
        if self.bytes is not None and self.bytes < 0:
            raise ValueError(f"bytes is {self.bytes}; expected 0 or more")
        for key, length in (("git_blob", 40), ("sha256", 64)):
            value = getattr(self, key)
            if value is not None and (len(value) != length or set(value) - set("0123456789abcdef")):
                raise ValueError(f"{key} is {value!r}; expected {length} hexadecimal digits")


@dataclass(frozen=True, kw_only=True)
class CatalogueEntry:
    """One data set.

    Attributes:
        name: What it is fetched by.
        title: For people.
        repository: Where it is kept, as owner and name.
        commit: At which state.
        licence: Of the repository.
        notice: What else a user has to know.
        evaluation_only: Whether it must not be trained on.
        base_url: What the files' paths are appended to.
        archive_url: All of the repository at that state as one archive.
        files: The files.
    """

    name: str
    title: str
    repository: str
    commit: str
    licence: str
    notice: str
    evaluation_only: bool
    base_url: str
    archive_url: str
    files: tuple[CatalogueFile, ...] = field(repr=False)

    @property
    def known_bytes(self) -> int:
        """Sum of the sizes that are known."""
        return sum(file.bytes or 0 for file in self.files)

    @property
    def sizes_known(self) -> bool:
        """Whether every size is."""
        return all(file.bytes is not None for file in self.files)

    def url(self, file: CatalogueFile, base_url: str | None = None) -> str:
        """The address of a file, or its address at a mirror."""
        return (base_url or self.base_url).rstrip("/") + "/" + quote(file.path)


def _is_inside(name: str) -> bool:
    """Whether a name is a plain relative path, written in the one way that there is."""
    path = PurePosixPath(name)
    plain = not path.is_absolute() and ".." not in path.parts and not set(name) & {"\\", "\0"}
    return plain and str(path) == name and name != "."


def entry_names() -> list[str]:
    """The names of all entries, sorted."""
    names = (item.name for item in files(__package__).joinpath(ENTRIES).iterdir())
    return sorted(name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX))


def read_entry(name: str) -> CatalogueEntry:
    """An entry of the catalogue.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in (known := entry_names()):
        raise ValueError(f"{name!r} is not in the catalogue; expected one of {', '.join(known)}")
    text = files(__package__).joinpath(ENTRIES, name + SUFFIX).read_text("utf-8")
    return parse_entry(json.loads(text), f"catalogue entry {name}")


def read_entry_file(file: str | Path) -> CatalogueEntry:
    """An entry that is not packaged, from a JSON file of the same form.

    Raises:
        ValueError: It is malformed; names the file and the key.
    """
    try:
        content = json.loads(Path(file).read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: not JSON: {error}") from error
    return parse_entry(content, str(file))


def parse_entry(content: Any, where: str) -> CatalogueEntry:
    """An entry from what its JSON holds.

    Raises:
        ValueError: A key is missing or malformed.
    """
    texts = ("name", "title", "repository", "commit", "licence", "notice", "base_url")
    hints = {
        **dict.fromkeys(texts, str),
        "archive_url": str,
        "files": tuple[Mapping[str, Any], ...],
    }
    try:
        if not isinstance(content, dict):
            raise TypeError(f"{type(content).__name__}; expected a JSON object")
        check_types(content, hints)
        if not isinstance(content.get("evaluation_only"), bool):
            raise TypeError("evaluation_only: expected true or false")
        if not _is_inside(content["name"]) or "/" in content["name"]:
            raise ValueError(f"name is {content['name']!r}; expected the name of a directory")
        for number, file in enumerate(content["files"]):
            check_types(file, {"path": str, "save_as": str, "git_blob": str}, f"files[{number}].")
            known = {key: file[key] for key in ("sha256", "bytes") if file.get(key) is not None}
            check_types(known, {key: _OPTIONAL[key] for key in known}, f"files[{number}].")
        entry = CatalogueEntry(
            **{**content, "files": tuple(CatalogueFile(**file) for file in content["files"])}
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
    names = {file.save_as.lower() for file in entry.files}
    paths = {file.path for file in entry.files}
    if not names or not len(names) == len(paths) == len(entry.files):
        raise ValueError(f"{where}: files: expected one or more, each with a name of its own")
    for file in entry.files:
        for folder in PurePosixPath(file.save_as.lower()).parents:
            if str(folder) in names:
                raise ValueError(
                    f"{where}: files: {str(folder)!r} is a file and the folder of {file.save_as!r}"
                )
    return entry
