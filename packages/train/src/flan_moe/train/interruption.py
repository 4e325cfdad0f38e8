"""Stopping between two batches when the machine asks."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

INTERRUPTED = 75
"""Exit status of a run that stopped at a signal with its state saved (``EX_TEMPFAIL``: run it
again)."""


class TrainingInterruptedError(Exception):
    """Training stopped at a signal after saving a checkpoint."""


class TrainingDivergedError(Exception):
    """Training stopped because a weight is no longer a finite number."""


class StopSignal:
    """Context manager that notes SIGTERM and SIGINT instead of dying of them.

    A second SIGINT is passed on, so that a user can insist. Outside the main thread, where Python
    allows no handlers, it does nothing.

    Attributes:
        received: The first signal received, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number)
