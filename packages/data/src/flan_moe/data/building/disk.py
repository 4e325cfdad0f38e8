"""A full disk, said once and clearly: which file, and what would help."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Of a file system, of a user's share of it, of a file (ulimit -f).
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFullError(OSError):
    """There is no room for a file; the message names it."""

    def __reduce__(self) -> tuple[Any, ...]:
        # By its text alone, as workers send it; an OSError's own way asks for a number.
        return DiskFullError, (str(self),), vars(self) or None


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
    except Exception as error:
        number = _error_number(error)
        if number not in _FULL:
            raise
        where = getattr(error, "filename", None) or file
        room = mebibytes(free_bytes(file))
        raise DiskFullError(f"{where}: {os.strerror(number)} ({room} free there)") from error


def _error_number(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)$", str(error))  # how tokenizers, in Rust, tells it
    return int(found[1]) if found else None


def free_bytes(path: str | Path) -> int:
    """How much room there is where a path is or would be."""
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def mebibytes(size: float) -> str:
    """A number of bytes for people."""
    return f"{size / 2**20:,.1f} MiB"
