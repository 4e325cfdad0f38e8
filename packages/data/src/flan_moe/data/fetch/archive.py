"""Takes files out of archives that others made, without trusting a name in them.

An archive with an absolute name, one that leaves its directory, a link, a device, or the same name
twice is refused as a whole, whether or not that member is wanted.
"""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from lzma import LZMAError
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from flan_moe.data.storage.staging import staged_directory

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
LARGEST_TOTAL = 64 << 30  # bytes of all members: a bound for archives that unpack to far more


class ArchiveError(ValueError):
    """An archive that is refused or damaged; the message names it and the member."""


def check_member_name(name: str, archive: str | Path) -> PurePosixPath:
    """A member's name as a relative path.

    Raises:
        ArchiveError: It is absolute, leaves the directory, or is no plain name on some system.
    """
    windows = PureWindowsPath(name)
    parts = windows.parts  # splits at both kinds of slashes
    if name.startswith(("/", "\\")) or windows.drive or windows.is_absolute():
        raise ArchiveError(
            f"{archive}: member {name!r} has an absolute path; the archive is refused"
        )
    if ".." in parts:
        raise ArchiveError(
            f"{archive}: member {name!r} leaves its directory; the archive is refused"
        )
    if not name or "\0" in name:
        raise ArchiveError(f"{archive}: member {name!r} is no file name; the archive is refused")
    return PurePosixPath(*parts) if parts else PurePosixPath(".")


def extract_archive(
    archive: Path,
    out: Path,
    *,
    rename: Callable[[PurePosixPath], str | None] = str,
    largest_total: int = LARGEST_TOTAL,
) -> list[Path]:
    """Unpack the regular files of a tar (also compressed) or zip archive into a new directory.

    Args:
        archive: Told by its suffix.
        out: Made when everything is in it; must not exist.
        rename: Given a member's path, where it goes below ``out``; None to leave it.
        largest_total: Bytes that may be written.

    Returns:
        The files, below ``out``, sorted.

    Raises:
        ArchiveError: A member is refused, or the archive is damaged or unpacks to too much.
        FileExistsError: ``out`` exists.
    """
    written = 0
    with staged_directory(out) as staging:
        for path, source in _members(archive):
            name = rename(path)
            if name is None:
                continue
            target = staging / check_member_name(name, archive)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as stream:
                while chunk := _read(source, archive, path):
                    written += len(chunk)
                    if written > largest_total:
                        raise ArchiveError(
                            f"{archive}: more than {largest_total} bytes at member {str(path)!r}"
                        )
                    stream.write(chunk)
        files = [file.relative_to(staging) for file in staging.rglob("*") if file.is_file()]
    return sorted(out / file for file in files if file.name != ".building")


def _members(archive: Path) -> Iterator[tuple[PurePosixPath, IO[bytes]]]:
    """The regular files, with their bytes.

    Raises:
        ArchiveError: A member is refused or the archive is damaged.
    """
    name = archive.name.lower()
    if name.endswith(".zip"):
        members = _zip_members(archive)
    elif name.endswith(TAR_SUFFIXES):
        members = _tar_members(archive)
    else:
        raise ArchiveError(f"{archive}: expected a .zip, {' or '.join(TAR_SUFFIXES)} file")
    seen: set[PurePosixPath] = set()
    try:
        for path, source in members:
            if path in seen:
                raise ArchiveError(
                    f"{archive}: member {str(path)!r} comes twice; the archive is refused"
                )
            seen.add(path)
            yield path, source
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, LZMAError) as error:
        raise ArchiveError(f"{archive}: not a whole archive: {error}") from error


def _tar_members(archive: Path) -> Iterator[tuple[PurePosixPath, IO[bytes]]]:
    with tarfile.open(archive) as tar:
        for member in tar:
            path = check_member_name(member.name, archive)
            if member.isdir():
                continue
            if not member.isreg():
                kind = "a link" if member.islnk() or member.issym() else "a device or pipe"
                raise ArchiveError(
                    f"{archive}: member {member.name!r} is {kind}; the archive is refused"
                )
            source = tar.extractfile(member)
            assert source is not None  # of a regular file
            yield path, source


def _zip_members(archive: Path) -> Iterator[tuple[PurePosixPath, IO[bytes]]]:
    with zipfile.ZipFile(archive) as packed:
        for member in packed.infolist():
            path = check_member_name(member.filename, archive)
            mode = member.external_attr >> 16
            if member.is_dir():
                continue
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                kind = "a link" if stat.S_ISLNK(mode) else "a device or pipe"
                raise ArchiveError(
                    f"{archive}: member {member.filename!r} is {kind}; the archive is refused"
                )
            if member.flag_bits & 1:
                raise ArchiveError(f"{archive}: member {member.filename!r} is encrypted")
            with packed.open(member) as source:
                yield path, source


def _read(source: IO[bytes], archive: Path, path: PurePosixPath) -> bytes:
    try:
        return source.read(shutil.COPY_BUFSIZE)
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        EOFError,
        OSError,
        zlib.error,
        LZMAError,
    ) as error:
        raise ArchiveError(f"{archive}: member {str(path)!r}: not whole: {error}") from error
