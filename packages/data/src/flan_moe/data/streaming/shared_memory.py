"""Living with mosaicml-streaming's shared memory: safe construction, and leftovers of killed runs.

Every `StreamingDataset` takes the next free six-digit prefix and makes POSIX shared memory and lock
files under it. Two processes that do so at once can pick the same prefix, and a run that is killed
leaves its prefix taken. Here

* `construction` lets one process at a time pick a prefix (a file lock in the temporary directory,
  released by the kernel when its holder dies);
* `hold` marks a prefix as alive: a shared ``flock`` on the prefix's own shared-memory file, which
  lasts exactly as long as the process (and its workers) and is seen across containers that share
  ``/dev/shm``;
* `reclaim` removes prefixes that name one of the given directories and that nobody holds. Others
  are not touched, so it is safe beside running jobs: those hold theirs;
* `recorded` and `release` give back what a dataset that is gone had opened. Streaming keeps every
  block until the process ends, a dozen descriptors per dataset and as many again for each dataset
  that it looked past: at the usual limit of 1,024 open files a process could make a few dozen.

Unlike ``streaming.base.util.clean_stale_shared_memory``, which removes everybody's. Where there is
no ``/dev/shm`` (macOS), leftovers are left alone; a rerun starts regardless, on the next prefix.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from streaming.base.shared import SharedMemory

SHM = Path("/dev/shm")
LOCK_TIMEOUT_S = 300.0

# Set up by a run while it iterates. Left under a prefix that has just been taken afresh, they would
# be read as this run's own: a wrong resume position, or a crash.
RUN_STATE = ("resume", "epoch_shape", "epoch_data")


@contextmanager
def construction(*, leader: bool) -> Iterator[None]:
    """Hold the machine-wide lock of this user while a dataset picks its prefix.

    Args:
        leader: Whether this process picks; the other ranks of a job wait for it in a barrier.

    Raises:
        TimeoutError: Another process holds the lock for minutes.
    """
    if not leader:
        yield
        return
    file = Path(tempfile.gettempdir(), f"flan-moe-data-{os.getuid()}.lock")
    lock = os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while not _try_lock(lock, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{file}: another process holds this lock; is it stuck?")
            time.sleep(0.01)
        yield
    finally:
        os.close(lock)


def hold(prefix: int) -> BinaryIO | None:
    """Mark a prefix as in use until this process and its workers are gone.

    Returns:
        The open file that carries the lock; None without ``/dev/shm``.
    """
    if not SHM.is_dir():
        return None
    file = (SHM / f"{prefix:06d}_locals").open("rb", buffering=0)
    if not _try_lock(file.fileno(), fcntl.LOCK_SH):
        raise RuntimeError(f"shared-memory prefix {prefix:06d} was taken by another process")
    return file


def discard_run_state(prefix: int) -> None:
    """Remove what an earlier owner of the prefix may have left of its position."""
    for name in RUN_STATE:
        (SHM / f"{prefix:06d}_{name}").unlink(missing_ok=True)


@contextmanager
def recorded() -> Iterator[list[SharedMemory]]:
    """Collect the blocks that streaming opens in here, on this thread; it has no other handle."""
    blocks: list[SharedMemory] = []
    thread, original = threading.get_ident(), SharedMemory.__init__

    def record(self: SharedMemory, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if threading.get_ident() == thread:
            blocks.append(self)

    SharedMemory.__init__ = record
    try:
        yield blocks
    finally:
        SharedMemory.__init__ = original


def release(blocks: list[SharedMemory]) -> None:
    """Close blocks now rather than when the process ends; those made here cease to exist."""
    while blocks:
        block = blocks.pop()
        atexit.unregister(block.cleanup)
        block.cleanup()


def belongs(block: SharedMemory, prefix: int) -> bool:
    """Whether a block is of this prefix, and not one that a search for a free prefix looked at."""
    return block.shm.name.lstrip("/").startswith(f"{prefix:06d}_")


def release_prefix(
    prefix: int, blocks: list[SharedMemory], held: BinaryIO | None, owner: int
) -> None:
    """Give back all that a dataset had; does nothing in a process that was forked from its own.

    Args:
        prefix: Of the dataset.
        blocks: Its shared memory.
        held: What `hold` returned; None in ranks that did not pick the prefix.
        owner: The process that made the dataset.
    """
    if os.getpid() != owner:
        return
    release(blocks)
    if held is not None:
        _unlink_locks(prefix)
        held.close()


def reclaim(directories: Iterable[str]) -> list[int]:
    """Remove what killed runs left behind for these directories.

    Call inside `construction`, so that no prefix is between being made and being held.

    Args:
        directories: Absolute paths of the streams about to be opened.

    Returns:
        The prefixes removed.
    """
    wanted = set(directories)
    removed = []
    for file in sorted(SHM.glob("[0-9]*_locals")) if SHM.is_dir() else []:
        match = re.fullmatch(r"(\d{6})_locals", file.name)
        if match and _is_dead(file, wanted):
            prefix = match.group(1)
            for leftover in SHM.glob(f"{prefix}_*"):
                if leftover != file:
                    leftover.unlink(missing_ok=True)
            _unlink_locks(int(prefix))
            file.unlink(missing_ok=True)  # last: it is what keeps the prefix taken
            removed.append(int(prefix))
    return removed


def _unlink_locks(prefix: int) -> None:
    """Remove streaming's lock files; as long as they are there it takes the prefix for taken."""
    for name in ("barrier", "cache"):
        Path(tempfile.gettempdir(), f"{prefix:06d}_{name}_filelock").unlink(missing_ok=True)


def _is_dead(file: Path, wanted: set[str]) -> bool:
    """Whether the prefix belongs to one of the directories and nobody holds it."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False  # another user's, or gone
    try:
        if os.fstat(descriptor).st_uid != os.getuid():
            return False
        names = set(_directories(os.read(descriptor, 1 << 20)))
        # All of them: a dataset that also reads elsewhere is not one of ours to judge.
        if not names or not names <= wanted:
            return False
        return _try_lock(descriptor, fcntl.LOCK_EX) and not _is_mapped(file)
    finally:
        os.close(descriptor)


def _directories(data: bytes) -> list[str]:
    """The stream directories that a ``locals`` block lists (streaming.base.shared.prefix)."""
    size = int.from_bytes(data[:4], "little")
    if not 4 < size <= len(data):
        return []
    return data[4:size].decode("utf-8", "replace").split("\0")[:-1]


def _is_mapped(file: Path) -> bool:
    """Whether a process of this machine has the block open, held by `hold` or not."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            if str(file) in maps.read_text(errors="replace"):
                return True
        except (PermissionError, FileNotFoundError, ProcessLookupError):
            continue
    return False


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
