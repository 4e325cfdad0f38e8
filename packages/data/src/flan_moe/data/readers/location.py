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
