"""Outputs that appear under their name only when they are complete."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_LOCK = ".building"
_RESULT = "result"
_PATIENCE_S = 5.0  # until the worker processes of a build that was killed are gone as well


@contextmanager
def staged_directory(
    final: str | Path, *, overwrite: bool = False, marker: str | None = None
) -> Iterator[Path]:
    """A temporary directory beside ``final`` that is renamed to it when the block ends well.

    When the block raises (an interrupt included) the temporary directory is removed. A process that
    is killed leaves ``.<name>.building-*`` behind, never ``final``; the next build of the same name
    removes it, unless the process that made it is still alive.

    Args:
        final: The directory to make.
        overwrite: Replace an existing directory; it stays untouched until the new one is complete.
        marker: With ``overwrite``, a file that the old directory must hold, so that only a
            directory of the same sort is ever replaced.

    Raises:
        FileExistsError: ``final`` exists and may not be replaced.
    """
    final = Path(final).absolute()
    check_output_directory(final, overwrite=overwrite, marker=marker)
    final.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{final.name}.building-"
    _remove_abandoned(final.parent, prefix)
    staging = Path(tempfile.mkdtemp(prefix=prefix, dir=final.parent))
    lock = os.open(staging / _LOCK, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        staging.chmod(0o777 & ~_umask())  # mkdtemp makes it private
        yield staging
        check_output_directory(final, overwrite=overwrite, marker=marker)
        (staging / _LOCK).unlink()
        _replace(staging, final)
    except BaseException:
        _discard(staging)
        raise
    finally:
        os.close(lock)


@dataclass(kw_only=True)
class Workplace:
    """Where a directory is made that takes more than one attempt.

    Attributes:
        path: Whatever is worth keeping between attempts.
        result: To be made by this attempt; it gets the final name.
        keep: Whether ``path`` outlives an attempt that fails.
    """

    path: Path
    result: Path
    keep: bool


@contextmanager
def resumable_directory(
    final: str | Path, *, overwrite: bool = False, marker: str | None = None
) -> Iterator[Workplace]:
    """As `staged_directory`, but what a stopped attempt left is there for the next one.

    The workplace is ``.<name>.building`` beside ``final``. Whatever stops the block, a kill
    included, leaves it as it is; only where ``keep`` is not set, an exception removes it.

    Args:
        final: The directory to make.
        overwrite: As of `staged_directory`.
        marker: As of `staged_directory`.

    Raises:
        FileExistsError: ``final`` exists and may not be replaced.
        BlockingIOError: Another process is making it.
    """
    final = Path(final).absolute()
    check_output_directory(final, overwrite=overwrite, marker=marker)
    final.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(final.parent, f".{final.name}.building-")
    path = final.with_name(f".{final.name}.building")
    lock = _locked(path)
    place = Workplace(path=path, result=path / _RESULT, keep=len(list(path.iterdir())) > 1)
    try:
        # Perhaps it was made while this process waited for the lock.
        check_output_directory(final, overwrite=overwrite, marker=marker)
        yield place
        check_output_directory(final, overwrite=overwrite, marker=marker)
        _replace(place.result, final)
        place.keep = False
    finally:
        if not place.keep:
            _discard(path)
        os.close(lock)


def clear(place: Workplace) -> None:
    """Remove everything that earlier attempts left in a workplace."""
    for entry in place.path.iterdir():
        if entry.name != _LOCK:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def _locked(path: Path) -> int:
    """Make a workplace and lock it; returns the descriptor of the lock.

    Raises:
        BlockingIOError: Another process has it.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        path.mkdir(exist_ok=True)
        try:
            lock = os.open(path / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            continue  # removed by its owner between the two lines
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                # The owner may have removed the file while this process opened it.
                if os.path.samestat(os.fstat(lock), os.stat(path / _LOCK)):
                    os.ftruncate(lock, 0)
                    os.write(lock, f"{os.getpid()}\n".encode())
                    return lock
        except BlockingIOError:
            if time.monotonic() > deadline:
                owner = os.read(lock, 20).decode(errors="replace").strip()
                os.close(lock)
                raise BlockingIOError(
                    f"{path}: another process ({owner}) is building there; wait for it, or choose "
                    "another place"
                ) from None
            time.sleep(0.05)
        os.close(lock)


def check_output_directory(
    final: str | Path, *, overwrite: bool = False, marker: str | None = None
) -> None:
    """Refuse an output directory that is in use, before any work is done for it.

    Raises:
        FileExistsError: It exists and ``overwrite`` is not set, or it is not what ``marker`` says.
    """
    final = Path(final)
    if not final.exists() or (final.is_dir() and not any(final.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"{final} exists already; choose another place or pass --overwrite")
    if marker is not None and not (final / marker).is_file():
        raise FileExistsError(
            f"{final} holds no {marker}, so it is not replaced; remove it yourself"
        )


def _replace(staging: Path, final: Path) -> None:
    if not final.exists():
        staging.rename(final)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{final.name}.replaced-", dir=final.parent))
    final.rename(old / final.name)
    staging.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove temporary directories whose maker no longer holds the lock inside."""
    for directory in parent.glob(f"{prefix}*"):
        try:
            lock = os.open(directory / _LOCK, os.O_RDWR)
        except OSError:
            continue  # just being made, or not ours
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            _discard(directory)
        finally:
            os.close(lock)


def _discard(staging: Path) -> None:
    """Remove a temporary directory, its lock last: by that the next build finds what is left."""
    with suppress(OSError):
        for entry in staging.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != _LOCK:
                entry.unlink()
    shutil.rmtree(staging, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
