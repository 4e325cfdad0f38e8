"""One JSON line per batch: the run's curves, complete across interruptions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from composer.core import State
from composer.loggers import Logger, LoggerDestination
from composer.utils import dist

from flan_moe.train.run_folder import write_atomically

UNWRITTEN = ("time/", "trainer/", "throughput/device/")
"""Prefixes of what Composer logs beside what every line says already."""


class MetricsLog(LoggerDestination):
    """Writes what Composer logs to a JSON-lines file.

    Everything logged within a batch shares a line; validation results, and counts per task
    (``seen``), get a line of their own. A
    resumed run first drops the lines after its checkpoint, so that each batch is there once.

    Args:
        path: The file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._pending: dict[str, Any] = {}
        self._file: TextIO | None = None

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Take metrics in; they are written when the batch ends."""
        for key, value in metrics.items():
            number = as_number(value)
            if number is not None:
                self._pending[key] = number

    def fit_start(self, state: State, logger: Logger) -> None:
        """Open the file, keeping the lines up to where training starts."""
        if dist.get_global_rank() != 0:
            return
        done = state.timestamp.batch.value
        kept = [line for line in read_metrics(self.path) if line["batch"] <= done]
        write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = self.path.open("a", encoding="utf-8")

    def batch_end(self, state: State, logger: Logger) -> None:
        """Write the batch's line."""
        self._write(state)

    def eval_after_all(self, state: State, logger: Logger) -> None:
        """Write the validation's line."""
        self._write(state)

    def write_line(self, state: State, content: dict[str, Any]) -> None:
        """Write a line of its own, of JSON values, at where training stands."""
        if self._file is None:
            return
        now = state.timestamp
        line = {
            "batch": now.batch.value,
            "examples": now.sample.value,
            "tokens": now.token.value,
            "seconds": round(now.total_wct.total_seconds(), 3),
            **content,
        }
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self, state: State, logger: Logger) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, state: State) -> None:
        if self._pending:
            kept = {k: v for k, v in self._pending.items() if not k.startswith(UNWRITTEN)}
            self.write_line(state, kept)
        self._pending = {}


def read_metrics(path: str | Path) -> Iterator[dict[str, Any]]:
    """Lines of a metrics file, oldest first; nothing if it does not exist.

    A last line without its newline is the mark of a killed process and is left out.

    Raises:
        ValueError: If another line is not a JSON object, with file and line number.
    """
    path = Path(path)
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                return
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: not JSON: {error}") from None
            if not isinstance(record, dict) or not isinstance(record.get("batch"), int):
                raise ValueError(f"{path}:{number}: expected an object with a batch number")
            yield record


def as_number(value: Any) -> float | int | None:
    """A logged value as a JSON number; None for what is not a finite scalar."""
    if hasattr(value, "item") and getattr(value, "numel", lambda: 1)() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value
