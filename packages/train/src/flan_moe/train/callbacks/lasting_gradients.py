"""Gradients of experts that stay in place from step to step, for Composer."""

from __future__ import annotations

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist


class LastingGradients(Callback):
    """Puts the experts' gradient buffers back after Composer's ``zero_grad``, which drops them.

    On a CPU, memory for the gradients of many experts costs more than computing them, if the
    operating system has to hand it out anew in every step. Elsewhere allocators keep it, and with
    several ranks the data-parallel wrapper has buffers of its own: then this does nothing.
    """

    def __init__(self) -> None:
        self._accumulate = False

    def before_train_batch(self, state: State, logger: Logger) -> None:
        """Have the first microbatch overwrite the gradients of the step before."""
        self._accumulate = False

    def before_forward(self, state: State, logger: Logger) -> None:
        """Prepare for the backward pass of a microbatch."""
        if state.device.name == "cpu" and dist.get_world_size() == 1:
            state.model.net.reserve_gradients(accumulate=self._accumulate)
            self._accumulate = True
