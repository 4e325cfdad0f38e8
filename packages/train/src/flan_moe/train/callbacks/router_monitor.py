"""What the routers do, in Composer's loggers.

Shape suffixes: E experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor

if TYPE_CHECKING:
    from flan_moe.routing import Routing


@dataclass
class _Tally:
    """Sums over the microbatches of one batch, for one sparse layer."""

    tokens: int = 0
    load: Tensor | None = None
    dropped: Tensor | float = 0.0
    entropy: Tensor | float = 0.0
    losses: dict[str, Tensor] = field(default_factory=dict)

    def add(self, routing: Routing) -> None:
        tokens, stats = routing.num_tokens, routing.stats
        load_E = stats["expert_load_E"]
        self.load = load_E if self.load is None else self.load + load_E
        self.tokens += tokens
        self.dropped = self.dropped + stats["dropped_fraction"] * tokens
        self.entropy = self.entropy + stats["router_entropy"] * tokens
        for name, loss in routing.losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + loss.detach() * tokens


class RouterMonitor(Callback):
    """Measures every sparse layer's router each ``every`` batches.

    Logs, for a layer named ``encoder.1``:

    - ``router/encoder.1/load/03``: expert 3's share of the layer's kept rows (1/E is even);
    - ``router/encoder.1/load_max``: the largest share times E (1 is even);
    - ``router/encoder.1/dropped``: fraction of tokens that no expert works on;
    - ``router/encoder.1/entropy``: mean entropy of the router's distribution, in nats, divided by
      ``ln E`` (1 is indifferent, 0 certain);
    - ``router/encoder.1/balance`` and ``.../z``: the layer's unweighted auxiliary losses.

    Means are over the routed tokens of all microbatches and ranks. Nothing is computed on batches
    that are not measured; a measured batch costs one transfer from the device per layer.

    Args:
        every: Batches between measurements.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._layers: dict[str, _Tally] = {}

    def after_forward(self, state: State, logger: Logger) -> None:
        """Add a microbatch to the batch's tally."""
        if not self._measures(state.timestamp.batch.value):
            return
        for name, routing in getattr(state.outputs, "routings", None) or ():
            self._layers.setdefault(short_name(name), _Tally()).add(routing)

    def batch_end(self, state: State, logger: Logger) -> None:
        """Log the batch's tally."""
        metrics: dict[str, Any] = {}
        for name, tally in self._layers.items():
            metrics |= _measurements(f"router/{name}", tally)
        if metrics:
            logger.log_metrics(metrics)
        self._layers = {}

    def _measures(self, batch: int) -> bool:
        return (batch + 1) % self.every == 0 or batch == 0


def short_name(module: str) -> str:
    """``encoder.layers.1.feed_forward`` as ``encoder.1``."""
    return ".".join(p for p in module.split(".") if p not in ("layers", "feed_forward"))


def _measurements(prefix: str, tally: _Tally) -> dict[str, float]:
    names = sorted(tally.losses)
    sums = torch.stack(
        [
            torch.as_tensor(float(tally.tokens), device=tally.load.device),
            torch.as_tensor(tally.dropped),
            torch.as_tensor(tally.entropy),
            *(tally.losses[name] for name in names),
        ]
    )
    packed = torch.cat([sums.float(), tally.load.float()])
    dist.all_reduce(packed)  # over ranks; one layer, one message
    tokens, dropped, entropy, *rest = packed.tolist()
    losses, load = rest[: len(names)], rest[len(names) :]
    total, experts = sum(load) or 1.0, len(load)
    tokens = tokens or 1.0
    return {
        f"{prefix}/load_max": max(load) / total * experts,
        f"{prefix}/dropped": dropped / tokens,
        f"{prefix}/entropy": entropy / tokens / math.log(experts) if experts > 1 else 0.0,
        **{f"{prefix}/{name}": loss / tokens for name, loss in zip(names, losses, strict=True)},
        **{f"{prefix}/load/{e:02d}": share / total for e, share in enumerate(load)},
    }
