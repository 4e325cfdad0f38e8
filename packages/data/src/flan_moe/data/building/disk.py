"""A full disk, said once and clearly: which file, and what would help."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Of a file system, of a user's share of it, of a file (ulimit -f).
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFullError(OSError):
    """There is no room for a file; the message names it."""

    def __reduce__(self) -> tuple[type[DiskFullError], tuple[str]]:
        return DiskFullError, (str(self),)  # an OSError of one argument, so that it can be sent


@contextmanager
def writing(file: str | Path) -> Iterator[None]:
    """Name the file in an error that only says that there is no room.

    Raises:
        DiskFullError: The block ran out of disk, quota or permitted file size.
    """
    try:
        yield
    except DiskFullError:
        raise
    except OSError as error:
        if error.errno not in _FULL:
            raise
        reason = os.strerror(error.errno)
        where = error.filename or file
        raise DiskFullError(
            f"{where}: {reason} ({mebibytes(free_bytes(file))} free there)"
        ) from error


def free_bytes(path: str | Path) -> int:
    """How much room there is where a path is or would be."""
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def mebibytes(size: float) -> str:
    """A number of bytes for people."""
    return f"{size / 2**20:,.1f} MiB"
