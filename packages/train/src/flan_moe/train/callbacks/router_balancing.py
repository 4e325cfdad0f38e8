"""What routers do between optimizer steps, for Composer."""

from __future__ import annotations

from composer.core import Callback, State
from composer.loggers import Logger

from flan_moe.routing import RouterBalancer


class RouterBalancing(Callback):
    """Runs a `RouterBalancer`: bias updates and global-batch loads, once per optimizer step.

    Does nothing for models whose routers need none. Their biases are buffers of the model, so that
    they are in its checkpoints; between two steps there is nothing else to save.
    """

    def __init__(self) -> None:
        self._balancer: RouterBalancer | None = None

    def fit_start(self, state: State, logger: Logger) -> None:
        """Look for routers to balance."""
        model = getattr(state.model, "module", state.model)  # inside a data-parallel wrapper
        self._balancer = RouterBalancer(model.net)

    def after_backward(self, state: State, logger: Logger) -> None:
        """Take in the routings of a microbatch."""
        if self._balancer:
            self._balancer.observe(state.outputs.routings)

    def batch_end(self, state: State, logger: Logger) -> None:
        """Update the routers; the optimizer has stepped."""
        if self._balancer:
            self._balancer.step()
