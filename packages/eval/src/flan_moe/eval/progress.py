"""A line that says how far an evaluation is."""

from __future__ import annotations

import time
from typing import TextIO


class Progress:
    """Shows cells and items done on a stream; a live line on a terminal, one line per cell else."""

    def __init__(self, stream: TextIO | None, *, cells: int) -> None:
        """Show nothing when ``stream`` is None."""
        self._stream = stream
        self._live = stream is not None and stream.isatty()
        self._cells = cells
        self._cell = 0
        self._label = ""
        self._started = 0.0

    def start(self, label: str, *, items: int, done: int) -> None:
        """Begin the next cell, of which ``done`` items were answered in an earlier run."""
        self._cell += 1
        self._label = f"[{self._cell}/{self._cells}] {label}"
        self._started = time.monotonic()
        self.update(done, items)

    def update(self, done: int, items: int) -> None:
        """Report the items done in this cell."""
        if self._stream is not None and self._live:
            self._stream.write(f"\r\x1b[K{self._label}: {done}/{items}")
            self._stream.flush()

    def finish(self, outcome: str) -> None:
        """End the cell with a line that stays."""
        if self._stream is not None:
            seconds = time.monotonic() - self._started
            start = "\r\x1b[K" if self._live else ""
            self._stream.write(f"{start}{self._label}: {outcome} ({seconds:.1f} s)\n")
            self._stream.flush()
