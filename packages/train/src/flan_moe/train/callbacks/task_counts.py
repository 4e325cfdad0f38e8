"""What has been trained on, task by task: in every checkpoint, and beside it in the log."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from composer.core import Callback, State
from composer.loggers import Logger

from flan_moe.train.callbacks.metrics_log import MetricsLog

if TYPE_CHECKING:
    from flan_moe.data.streaming.seen import Seen, SeenTasks

COLUMNS = ("samples", "input_tokens", "target_tokens", "overlong")


class TaskCounts(Callback):
    """Keeps the dataloader's counts in the checkpoint, and logs them when one is written.

    Counts are sums over all ranks, so those of a resumed run are exact, with another number of
    ranks too.

    Args:
        seen: The training dataloader's.
        log: Where the counts of a checkpoint get a line of their own.
        report: Receives a line if a checkpoint brings no counts.
    """

    def __init__(self, seen: SeenTasks, log: MetricsLog, report: Callable[[str], None]) -> None:
        self._seen = seen
        self._log = log
        self._report = report

    def state_dict(self) -> dict[str, Any]:
        """The counts; all ranks must call it."""
        return {"seen": self._seen.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from saved counts."""
        self._seen.load_state_dict(state["seen"])

    def fit_start(self, state: State, logger: Logger) -> None:
        """Say so if the counts do not start with the run."""
        counted = sum(count.samples for count in self._seen.counts().values())
        if counted != state.timestamp.sample.value:
            self._report(
                f"examples per task are counted from batch {state.timestamp.batch.value} on: the "
                "checkpoint has no counts of what came before"
            )

    def write(self, state: State) -> None:
        """Write a line with the counts so far; all ranks must call it."""
        rows = self._seen.state_dict()
        counts = {name: dict(zip(COLUMNS, row, strict=True)) for name, row in rows.items()}
        self._log.write_line(state, {"seen": counts})


def overlong_line(counts: dict[str, Seen]) -> str | None:
    """One line on the examples that were cut, most affected tasks first; None if there are none."""
    cut = {name: count.overlong for name, count in counts.items() if count.overlong}
    if not cut:
        return None
    order = sorted(cut, key=lambda name: (-cut[name], name))
    named = ", ".join(f"{name} {cut[name]:,}" for name in order[:3])
    more = f" and {len(cut) - 3} more tasks" if len(cut) > 3 else ""
    total = sum(count.samples for count in counts.values())
    return (
        f"{sum(cut.values()):,} of {total:,} examples were longer than a row and cut: {named}{more}"
    )
