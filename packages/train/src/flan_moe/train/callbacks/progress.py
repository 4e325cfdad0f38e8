"""A line on the console now and then."""

from __future__ import annotations

import time
from collections.abc import Callable

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist


class Progress(Callback):
    """Prints the loss, the speed and the time left, every ``every`` batches and at the end.

    Args:
        name: The run's name, at the start of each line.
        every: Batches between lines.
        say: Prints a line.
    """

    def __init__(self, name: str, every: int, say: Callable[[str], None]) -> None:
        self.name = name
        self.every = every
        self.say = say
        self._since = time.monotonic()
        self._tokens = 0
        self._started_at = 0.0

    def fit_start(self, state: State, logger: Logger) -> None:
        """Start the clock."""
        self._since = time.monotonic()
        self._tokens = state.timestamp.token.value
        self._started_at = _fraction(state)
        self._start = self._since

    def batch_end(self, state: State, logger: Logger) -> None:
        """Print a line if it is time."""
        batch, done = state.timestamp.batch.value, _fraction(state)
        if dist.get_global_rank() != 0 or (batch % self.every and done < 1):
            return
        now, tokens = time.monotonic(), state.timestamp.token.value
        speed = (tokens - self._tokens) / max(now - self._since, 1e-9)
        self._since, self._tokens = now, tokens
        losses = {k.removeprefix("loss/train/"): v for k, v in state.total_loss_dict.items()}
        rate = state.schedulers[0].get_last_lr()[0] if state.schedulers else float("nan")
        self.say(
            f"{self.name}  batch {batch}  {done:4.0%}  loss {losses['total']:.3f} "
            f"(cross-entropy {losses['cross_entropy']:.3f})  lr {rate:.2g}  "
            f"{speed:,.0f} tokens/s  {self._time_left(now, done)}"
        )

    def _time_left(self, now: float, done: float) -> str:
        progress = done - self._started_at
        if done >= 1 or progress <= 0:
            return "done" if done >= 1 else "time left unknown"
        return f"{clock((now - self._start) / progress * (1 - done))} left"


def clock(seconds: float) -> str:
    """``75`` as ``1:15``, ``3675`` as ``1:01:15``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _fraction(state: State) -> float:
    elapsed = state.get_elapsed_duration()
    return 0.0 if elapsed is None else min(float(elapsed), 1.0)
