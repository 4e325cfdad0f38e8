"""A lock on a directory that processes go on with, one after the other."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_FILE = ".lock"


@contextmanager
def locked_directory(directory: Path) -> Iterator[None]:
    """Hold the lock; it is given back when the process ends, however it ends.

    Raises:
        BlockingIOError: Another process holds it.
    """
    lock = os.open(directory / LOCK_FILE, os.O_CREAT | os.O_RDWR)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"{directory}: another process is writing to it") from None
        yield
    finally:
        os.close(lock)
