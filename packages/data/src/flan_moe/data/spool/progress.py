"""Progress of an ingest: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm

SECONDS = 10.0  # between lines


class Progress:
    """Counts rows and files.

    Args:
        files: Number of files to read.
        done: Of them, those of an earlier run.
        stream: Where to show it; standard error if None.
    """

    def __init__(self, files: int, done: int, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._files, self._done, self._rows = files, done, 0
        self._shown = self._started = time.monotonic()
        self._bar: tqdm | None = None
        if self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(unit=" rows", unit_scale=True, file=self._stream)
            self._bar.set_postfix_str(self._state())
        elif done:
            self._line(f"{done} of {files} files are in the spool already")

    def rows(self, number: int) -> None:
        """So many more rows have been read."""
        self._rows += number
        if self._bar is not None:
            self._bar.update(number)
        elif time.monotonic() - self._shown >= SECONDS:
            self._show()

    def file(self, name: str, read: int, kept: int) -> None:
        """A file is finished."""
        self._done += 1
        if self._bar is not None:
            self._bar.set_postfix_str(self._state())
        else:
            self._line(f"  {self._state()}: {name}: {read:,} rows, {kept:,} kept")

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.close()

    def _show(self) -> None:
        seconds = time.monotonic() - self._started
        self._line(f"  {self._state()}, {self._rows:,} rows, {self._rows / seconds:,.0f} a second")

    def _state(self) -> str:
        return f"{self._done} of {self._files} files"

    def _line(self, text: str) -> None:
        self._shown = time.monotonic()
        print(text, file=self._stream, flush=True)
