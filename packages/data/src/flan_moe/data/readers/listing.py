"""Finding raw files: in folders, in all folders below, and by pattern, on disk and elsewhere.

A remote folder that cannot be listed is an error. fsspec's own `find` and `glob` leave such folders
out without a word, and files would be missing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING

from flan_moe.data.readers.errors import RawDataError
from flan_moe.data.readers.location import (
    SEQUENTIAL_PROTOCOLS,
    RawFile,
    RemoteFile,
    as_file,
    filesystem_of,
    naming,
)

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

GLOB_SIGN = "*"  # a question mark starts the query of a web address


def files_under(location: str | Path, pattern: str, what: str) -> list[RawFile]:
    """One file, or the files of a folder that match, sorted by name.

    Args:
        location: Path or fsspec address of a file or a folder.
        pattern: One or more patterns of names, separated by blanks.
        what: What such a file is called in errors.

    Raises:
        RawDataError: There is nothing at the location, or it holds no such file.
    """
    patterns = pattern.split()
    place = as_file(location)
    if isinstance(place, Path):
        if place.is_file():
            return [place]
        files: list[RawFile] = sorted({file for one in patterns for file in place.glob(one)})
    else:
        with naming(place.url):
            files = _remote_files(place, patterns, below=False)
    if not files:
        raise RawDataError(f"{location}: expected {what} or a folder with {pattern} files")
    return files


def files_below(location: str | Path, patterns: tuple[str, ...], what: str) -> list[RawFile]:
    """As `files_under`, in all folders below; a location with ``*`` is a pattern itself.

    Raises:
        RawDataError: There is nothing at the location, or it holds no such file.
    """
    place = as_file(location)
    if isinstance(place, Path):
        if place.is_file():
            return [place]
        if GLOB_SIGN in str(location):
            files = _local_glob(place)
        else:
            files = sorted(
                file
                for file in _walked(place)
                if _matches(file.name, patterns) and not _hidden(file, place) and _is_file(file)
            )
    else:
        with naming(place.url):
            files = _remote_files(place, patterns, below=True)
    if not files:
        raise RawDataError(
            f"{location}: expected {what}, or a folder with {' or '.join(patterns)} files"
        )
    return files


def has_folder(location: str | Path, name: str) -> bool:
    """Whether a folder holds a folder of that name.

    Raises:
        RawDataError: The store does not answer.
    """
    place = as_file(location)
    if isinstance(place, Path):
        return (place / name).is_dir()
    with naming(place.url):
        filesystem, path = filesystem_of(f"{place.url.rstrip('/')}/{name}")
        return bool(filesystem.isdir(path))


def inside(location: str | Path, name: str) -> str | Path:
    """What lies under a name inside a folder."""
    place = as_file(location)
    return place / name if isinstance(place, Path) else f"{place.url.rstrip('/')}/{name}"


def _matches(name: str, patterns: tuple[str, ...] | list[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _walked(root: Path) -> Iterator[Path]:
    """What is in a folder and all below; links to folders are followed, though not in circles."""
    above: dict[str, frozenset[str]] = {}
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_cannot_list):
        here = above.pop(folder, frozenset()) | {os.path.realpath(folder)}
        folders[:] = [
            name for name in folders if os.path.realpath(os.path.join(folder, name)) not in here
        ]
        above |= {os.path.join(folder, name): here for name in folders}
        yield from (Path(folder, name) for name in names)


def _cannot_list(error: OSError) -> None:
    if isinstance(error, FileNotFoundError):  # nothing there: its caller finds no files
        return
    raise RawDataError(f"{error.filename}: cannot be listed: {error.strerror}") from error


def _is_file(file: Path) -> bool:
    if file.is_symlink() and not file.exists():
        raise RawDataError(f"{file}: a link to {os.readlink(file)}, where nothing is")
    return file.is_file()


def _hidden(file: Path, root: Path) -> bool:
    """Whether a file is in a folder such as ``.cache`` or ``.git``, below the root."""
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _local_glob(pattern: Path) -> list[Path]:
    return sorted(Path(name) for name in glob(str(pattern), recursive=True) if _is_file(Path(name)))


def _addresses(filesystem: AbstractFileSystem, paths: list[str]) -> list[RemoteFile]:
    return sorted((RemoteFile(filesystem.unstrip_protocol(path)) for path in paths), key=str)


def _is_remote_file(place: RemoteFile, patterns: tuple[str, ...] | list[str]) -> bool:
    """Whether an address is a file. A web server tells no folder from a file: the name has to."""
    filesystem, path = filesystem_of(place.url)
    if place.protocol in SEQUENTIAL_PROTOCOLS:
        return _matches(place.name, patterns) and bool(filesystem.info(path))
    return bool(filesystem.info(path)["type"] == "file")


def _remote_files(
    place: RemoteFile, patterns: tuple[str, ...] | list[str], *, below: bool
) -> list[RawFile]:
    filesystem, path = filesystem_of(place.url)
    if GLOB_SIGN in place.url:
        return list(_addresses(filesystem, _globbed(filesystem, path)))
    if _is_remote_file(place, patterns):
        return [place]
    if place.protocol in SEQUENTIAL_PROTOCOLS:
        path = path.rstrip("/") + "/"
    names = _listed(filesystem, path, below=below)
    return [file for file in _addresses(filesystem, names) if _matches(file.name, patterns)]


def _globbed(filesystem: AbstractFileSystem, pattern: str) -> list[str]:
    """The files that match; as `_listed` and unlike fsspec's, it leaves no folder out."""
    from fsspec.utils import glob_translate

    root = pattern[: pattern.index(GLOB_SIGN)].rpartition("/")[0] + "/"
    matches = re.compile(glob_translate(pattern)).match
    return [name for name in _listed(filesystem, root, below=True) if matches(name)]


def _listed(filesystem: AbstractFileSystem, path: str, *, below: bool) -> list[str]:
    """The files of a folder, or of all folders below; fails where a folder cannot be listed.

    `AbstractFileSystem.find` leaves such folders out without a word.
    """
    names: list[str] = []
    folders, seen = [path], {path.rstrip("/")}
    while folders:
        folder = folders.pop()
        for entry in filesystem.ls(folder, detail=True):
            name = entry["name"].rstrip("/")
            # Lists of web servers also lead upwards and elsewhere.
            if not name.startswith(folder.rstrip("/") + "/") or name in seen:
                continue
            seen.add(name)
            if entry["type"] == "file":
                names.append(name)
            elif below:
                folders.append(entry["name"])
    return names
