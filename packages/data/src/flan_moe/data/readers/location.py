"""Where raw files lie: local paths, and whatever fsspec can open (http, s3, gs, hf, ...).

Local files stay `pathlib.Path`. A remote file is a `RemoteFile`, which has the few methods of a
path that readers use, and which turns every failure of a remote store into a `RawDataError` that
names the address.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import unquote

from flan_moe.data.readers.errors import RawDataError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

BUFFER_BYTES = 1 << 20
# Stores that may not answer range requests; read from start to end they need none.
SEQUENTIAL_PROTOCOLS = ("http", "https")
# What the stores of fsspec call the tag, hash or date of a file.
VERSION_KEYS = ("ETag", "etag", "md5", "LastModified", "Last-Modified", "updated", "mtime")
GLOB_SIGN = "*"  # a question mark starts the query of a web address


@dataclass(frozen=True)
class RemoteFile:
    """A file at an fsspec address such as ``s3://bucket/flan/a.jsonl.gz``."""

    url: str

    def __str__(self) -> str:
        """The address."""
        return self.url

    @property
    def name(self) -> str:
        """The last part of the address, without a query."""
        path = self.url.partition("?")[0] if self.protocol in SEQUENTIAL_PROTOCOLS else self.url
        return unquote(path.rstrip("/").rpartition("/")[2])

    @property
    def stem(self) -> str:
        """The name without its last suffix."""
        return Path(self.name).stem

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the address after the protocol."""
        return tuple(unquote(part) for part in self.url.partition("://")[2].split("/") if part)

    @property
    def protocol(self) -> str:
        """What stands before the colon."""
        return self.url.partition("://")[0]

    def open(self, mode: str = "rb") -> BinaryIO:
        """The bytes from start to end, fetched as they are read.

        Raises:
            RawDataError: The store does not answer or has no such file; also while reading.
        """
        if mode != "rb":
            raise ValueError(f"mode is {mode!r}; remote files are opened 'rb'")
        return io.BufferedReader(_Guarded(self._open(), self.url), BUFFER_BYTES)

    def open_seekable(self) -> BinaryIO:
        """As `open`, for formats that jump about; needs a store that answers range requests."""
        with naming(self.url):
            filesystem, path = filesystem_of(self.url)
            return io.BufferedReader(_Guarded(filesystem.open(path, "rb"), self.url), BUFFER_BYTES)

    def read_bytes(self) -> bytes:
        """The whole file.

        Raises:
            RawDataError: As `open`.
        """
        with self.open() as stream:
            return stream.read()

    def _open(self) -> Any:
        with naming(self.url):
            filesystem, path = filesystem_of(self.url)
            options = {"block_size": 0} if self.protocol in SEQUENTIAL_PROTOCOLS else {}
            return filesystem.open(path, "rb", **options)


RawFile = Path | RemoteFile


class _Guarded(io.RawIOBase):
    """A remote stream whose failures name the address."""

    def __init__(self, stream: Any, url: str) -> None:
        self._stream, self._url = stream, url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._stream.seekable())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with naming(self._url):
            return int(self._stream.seek(offset, whence))

    def tell(self) -> int:
        return int(self._stream.tell())

    def readinto(self, buffer: Any) -> int:
        with naming(self._url):
            data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


def as_file(location: str | Path | RemoteFile) -> RawFile:
    """A local path, or a remote file where the location has a protocol other than ``file``."""
    if isinstance(location, Path | RemoteFile):
        return location
    protocol, separator, rest = location.partition("://")
    if not separator:
        return Path(location)
    return Path(unquote(rest)) if protocol in ("file", "local") else RemoteFile(location)


def open_seekable(file: RawFile) -> BinaryIO:
    """A file's bytes for a format that jumps about.

    Raises:
        RawDataError: There is no such file, or its store does not answer.
    """
    if isinstance(file, RemoteFile):
        return file.open_seekable()
    try:
        return file.open("rb")
    except FileNotFoundError:
        raise RawDataError(f"{file}: no such file") from None


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
                for file in place.rglob("*")
                if file.is_file() and _matches(file.name, patterns) and not _hidden(file, place)
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


def fingerprint(file: RawFile) -> dict[str, Any]:
    """What tells cheaply whether a file is the one of before: its size, and its date or tag.

    Raises:
        RawDataError: There is no such file, or its store does not answer.
    """
    if isinstance(file, Path):
        try:
            status = file.stat()
        except FileNotFoundError:
            raise RawDataError(f"{file}: no such file") from None
        return {"bytes": status.st_size, "version": str(status.st_mtime_ns)}
    with naming(file.url):
        filesystem, path = filesystem_of(file.url)
        info = filesystem.info(path)
    version = next((info[key] for key in VERSION_KEYS if info.get(key)), None)
    return {"bytes": info.get("size"), "version": None if version is None else str(version)}


def filesystem_of(url: str) -> tuple[AbstractFileSystem, str]:
    """The store of an address, and the path within it.

    Raises:
        RawDataError: The package that speaks the protocol is not installed, or there is none.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise RawDataError(f"{url}: {error}") from error
    except ValueError as error:
        raise RawDataError(f"{url}: {error}") from error


@contextmanager
def naming(url: str) -> Iterator[None]:
    """Turn whatever a remote store raises into one error that names the address.

    The stores raise the exceptions of their own client libraries, which have no common base.
    """
    try:
        yield
    except (RawDataError, TypeError, AttributeError, NameError):  # the last three: a fault of ours
        raise
    except Exception as error:
        if isinstance(error, FileNotFoundError) and _answered(error.__cause__):
            raise RawDataError(f"{url}: no such file") from None
        # fsspec also calls a file missing when its server could not be asked.
        reason = (isinstance(error, FileNotFoundError) and error.__cause__) or error
        what = " ".join(str(reason).split()) or "no reason given"
        raise RawDataError(f"{url}: cannot be read ({type(reason).__name__}: {what})") from error


def _answered(cause: BaseException | None) -> bool:
    """Whether a missing file is what the store said, and not what became of a failure."""
    missing = cause is None or isinstance(cause, FileNotFoundError)
    return missing or getattr(cause, "status", None) in (404, 410) or hasattr(cause, "response")


def _matches(name: str, patterns: tuple[str, ...] | list[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _hidden(file: Path, root: Path) -> bool:
    """Whether a file is in a folder such as ``.cache`` or ``.git``, below the root."""
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _local_glob(pattern: Path) -> list[Path]:
    from glob import glob

    return sorted(Path(name) for name in glob(str(pattern), recursive=True) if Path(name).is_file())


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
    import re

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
