"""Data directories at a distance: fetching files, and opening a directory by its URL.

A file is written under a temporary name, compared with the size and sha256 that are known of it,
and only then renamed. Every failure is a `DownloadError` that names the URL, after a bounded number
of attempts, each with a timeout on connecting and on every read.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from flan_moe.data.storage.manifest import MANIFEST_FILE, file_sha256, read_manifest
from flan_moe.data.streaming.transports import FinalError, Transport, transport_for

ATTEMPTS = 3
TIMEOUT_S = 20.0
BACKOFF_S = 0.5
LEFT_OUT = ("eval/", "webdataset/")  # of the small files: not needed to train


class DownloadError(OSError):
    """A remote file cannot be had; the message names its URL."""


@dataclass(frozen=True, kw_only=True)
class Location:
    """A folder somewhere.

    Attributes:
        url: Of the folder.
        timeout: Seconds to wait for a connection, and for each read.
        transport: How its files are read; None chooses by the scheme of the URL.
    """

    url: str
    timeout: float = TIMEOUT_S
    transport: Transport | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: The scheme is unknown or the timeout is not positive.
        """
        if self.transport is None:
            object.__setattr__(self, "transport", transport_for(self.url))
        if not self.timeout > 0:
            raise ValueError(f"timeout is {self.timeout!r}; expected a positive number of seconds")

    def __truediv__(self, name: str) -> Location:
        """What is below this folder, read the same way."""
        return replace(self, url=f"{self.url.rstrip('/')}/{name}")


@dataclass(frozen=True, kw_only=True)
class OpenedDirectory:
    """A data directory, here or at a distance.

    Attributes:
        folder: With its small files; with all of it where there is no source.
        source: Where missing shards are fetched from; None where all are local.
    """

    folder: Path
    source: Location | None


def open_location(
    path: str | Path | OpenedDirectory,
    *,
    cache: str | Path | None = None,
    timeout: float = TIMEOUT_S,
) -> OpenedDirectory:
    """A data directory by its path or its URL.

    Args:
        path: Of the data directory.
        cache: Of a URL, see `open_remote_directory`.
        timeout: Of a URL: seconds to wait for a connection, and for each read.

    Raises:
        DownloadError: A remote file is missing, cannot be reached, or is damaged.
        ValueError: The location is of an unknown kind, or its manifest is damaged.
    """
    if isinstance(path, OpenedDirectory):
        return path
    if "://" not in str(path):
        return OpenedDirectory(folder=Path(path), source=None)
    source = Location(url=str(path), timeout=timeout)
    return OpenedDirectory(folder=open_remote_directory(source, cache), source=source)


def fetch(
    source: Location, file: Path, *, size: int | None = None, sha256: str | None = None
) -> None:
    """Bring one file; it appears under its name when it is complete and right.

    Args:
        source: Where it is.
        file: Where to.
        size: Bytes that it must have; None if unknown.
        sha256: Hash that it must have; None if unknown.

    Raises:
        DownloadError: It is missing, cannot be reached, or is not what was expected.
    """
    assert source.transport is not None
    file.parent.mkdir(parents=True, exist_ok=True)
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(BACKOFF_S * 2**attempt)
        descriptor, name = tempfile.mkstemp(
            prefix=f".{file.name}.", suffix=".part", dir=file.parent
        )
        part = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                source.transport(source.url, stream, source.timeout)
            _check(part, size, sha256)
            part.chmod(0o644)
            os.replace(part, file)
            return
        except FinalError as error:
            raise DownloadError(f"{source.url}: {error}") from None
        except Exception as error:  # boto3, http and the cloud clients raise many unrelated types
            reason = f"{type(error).__name__}: {error}"
        finally:
            part.unlink(missing_ok=True)
    raise DownloadError(f"{source.url}: cannot be fetched in {ATTEMPTS} attempts; {reason}")


def open_remote_directory(source: Location, cache: str | Path | None = None) -> Path:
    """Make a local folder that looks like a remote data directory, without its shards.

    The manifest is fetched every time; tables, indexes and tokenizer where the cache has not the
    ones that the manifest lists. A directory that was built anew gets a folder of its own.

    Args:
        source: The data directory.
        cache: Parent of the folder; None for ``flan-moe-data`` in the user's cache directory.

    Returns:
        The folder.

    Raises:
        DownloadError: Something is missing, cannot be reached, or is not what the manifest says.
        ValueError: The manifest is damaged.
    """
    root = Path(cache) if cache is not None else _default_cache()
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".opening-", dir=root) as folder:
        fetched = Path(folder) / MANIFEST_FILE
        fetch(source / MANIFEST_FILE, fetched)
        key = hashlib.sha256(source.url.encode() + b"\0" + fetched.read_bytes()).hexdigest()[:16]
        try:
            manifest = read_manifest(Path(folder))
        except ValueError as error:
            where = (source / MANIFEST_FILE).url
            raise ValueError(str(error).replace(str(fetched), where)) from None
        directory = root / f"{PurePosixPath(source.url).name}-{key}"
        directory.mkdir(exist_ok=True)
        os.replace(fetched, directory / MANIFEST_FILE)
    for name, digest in manifest.files.items():
        file = directory / name
        if name.startswith(LEFT_OUT) or (file.is_file() and file_sha256(file) == digest):
            continue
        fetch(source / name, file, sha256=digest)
    return directory


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "flan-moe-data"


def _check(part: Path, size: int | None, sha256: str | None) -> None:
    found = part.stat().st_size
    if size is not None and found != size:
        raise ValueError(f"{found} bytes; expected {size} (truncated or replaced?)")
    if sha256 is not None and file_sha256(part) != sha256:
        raise ValueError(f"its sha256 is not the expected {sha256} (truncated or replaced?)")
