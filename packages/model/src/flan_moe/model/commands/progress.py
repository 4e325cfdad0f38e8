"""How far a long write has come, on standard error."""

from __future__ import annotations

import sys
import time


class ByteProgress:
    """Prints bytes done, bytes in all and the rate; on a terminal in one line that changes.

    Args:
        verb: what is being done, such as ``"converted"``.
    """

    _SECONDS = 0.5

    def __init__(self, verb: str) -> None:
        self.verb = verb
        self._start = time.monotonic()
        self._next = self._start + self._SECONDS

    def __call__(self, done: int, total: int) -> None:
        """Print, unless that was just done."""
        now = time.monotonic()
        terminal = sys.stderr.isatty()
        if now < self._next and done < total:
            return
        self._next = now + self._SECONDS * (1 if terminal else 20)
        rate = done / max(now - self._start, 1e-9)
        line = f"{self.verb} {done / 1e9:.2f} of {total / 1e9:.2f} GB, {rate / 1e6:.0f} MB/s"
        end = "\r" if terminal and done < total else "\n"
        print(line, end=end, file=sys.stderr, flush=True)
