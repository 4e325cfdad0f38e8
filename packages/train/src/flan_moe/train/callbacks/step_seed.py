"""Randomness that depends on the step, not on the history."""

from __future__ import annotations

import numpy as np
import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist


class StepSeed(Callback):
    """Seeds torch before every batch from (seed, rank, batch number).

    Composer restores the random state of a checkpoint only at the start of an epoch when the
    dataset resumes by itself, as a `StreamingDataset` does; a run resumed within an epoch would
    draw other dropout masks than the uninterrupted one. Seeding each step also makes it
    independent of what happened between steps, such as validation.

    Args:
        seed: The run's seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def batch_start(self, state: State, logger: Logger) -> None:
        """Seed the coming batch."""
        torch.manual_seed(step_seed(self.seed, dist.get_global_rank(), state.timestamp.batch.value))


def step_seed(seed: int, rank: int, batch: int) -> int:
    """A 32-bit seed, well mixed: torch's CPU generator uses no more bits than that."""
    return int(np.random.SeedSequence((seed, rank, batch)).generate_state(1)[0])
