"""Checkpoints that are whole or absent, and the stop between two batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from composer.core import Callback, Event, State
from composer.loggers import Logger
from composer.utils import create_interval_scheduler, dist
from composer.utils.checkpoint import save_checkpoint
from torch import nn

from flan_moe.train.interruption import (
    StopSignal,
    TrainingDivergedError,
    TrainingInterruptedError,
)
from flan_moe.train.run_folder import RunFolder


class CheckpointWriter(Callback):
    """Saves Composer's whole training state at intervals, at the end, and when asked to stop.

    Composer's own saver writes in place and replaces its "latest" link in two steps; a process
    killed meanwhile leaves a torn file that the next run finds. Here a checkpoint is written under
    a temporary name, flushed to disk and renamed, so that every checkpoint name stands for a whole
    checkpoint.

    Args:
        folder: The run folder.
        interval: Composer time string.
        keep: How many of the newest checkpoints to leave on disk.
        stop: The signal to watch, if any.
        before: Called before each checkpoint, on all ranks.
    """

    def __init__(
        self,
        folder: RunFolder,
        interval: str,
        keep: int,
        stop: StopSignal | None,
        before: Callable[[State], None] | None = None,
    ) -> None:
        self.folder = folder
        self.keep = keep
        self.stop = stop
        self.before = before
        self._due = create_interval_scheduler(interval, include_end_of_training=True)
        self._saved_batch = -1

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Save if due; stop if asked.

        Raises:
            TrainingDivergedError: Instead of saving weights that are not finite: they would take
                the place of the last good ones.
            TrainingInterruptedError: After saving, if a stop signal has arrived on any rank.
        """
        stopping = self._stopping(state)
        if stopping or self._due(state, Event.BATCH_CHECKPOINT):
            self._save(state)
        if stopping:
            raise TrainingInterruptedError(f"stopped after batch {state.timestamp.batch.value}")

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        """Save if due at the end of an epoch."""
        if self._due(state, Event.EPOCH_CHECKPOINT):
            self._save(state)

    def _stopping(self, state: State) -> bool:
        received = self.stop is not None and self.stop.received is not None
        if dist.get_world_size() > 1:  # every rank must stop after the same batch
            flag = state.device.tensor_to_device(torch.tensor(int(received)))
            dist.all_reduce(flag, reduce_operation="MAX")
            received = bool(flag.item())
        return received

    def _save(self, state: State) -> None:
        batch = state.timestamp.batch.value
        if batch == self._saved_batch:
            return
        _check_finite(state.model, batch)
        self._saved_batch = batch
        if self.before is not None:
            self.before(state)
        partial = self.folder.partial_checkpoint(batch)
        try:
            save_checkpoint(state, filename=str(partial))
        except RuntimeError as error:  # what torch makes of a full disk, in one form or another
            raise OSError(f"{partial}: the checkpoint cannot be written: {error}") from error
        if dist.get_global_rank() == 0:
            self.folder.commit_checkpoint(Path(partial), batch)
            self.folder.prune_checkpoints(self.keep)


def _check_finite(model: nn.Module, batch: int) -> None:
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise TrainingDivergedError(
                f"after batch {batch}: {name} has values that are not finite, and nothing was "
                "saved; a smaller optimizer.lr or a training.gradient_clip may help"
            )
