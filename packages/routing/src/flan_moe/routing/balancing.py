"""Balancing between optimizer steps: bias updates without a loss, and the global-batch loss.

Counts are taken from routings that the model has *returned*. What evaluation computes, or what
activation checkpointing computes a second time, is returned to nobody and so counted by nobody.

Shape suffixes: E experts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, distributed, nn

from flan_moe.routing.contract import Routing
from flan_moe.routing.quantile import BIAS_HISTOGRAM, BINS, quantile_bias
from flan_moe.routing.router import Router


class RouterBalancer:
    """Collects what a model's routers did and updates their state once per optimizer step.

    ::

        balancer = RouterBalancer(model)
        for batch in batches:
            for microbatch in batch:
                output = model(microbatch)
                output.loss.backward()
                balancer.observe(output.routings)
            optimizer.step()
            balancer.step()

    The biases are buffers of the routers and so part of the model's state dict; nothing else has
    to be saved between steps.

    Args:
        model: whose `Router` modules to balance; those without ``bias_update`` and with another
            ``balance_scope`` than ``"global"`` need nothing and are left alone.
        process_group: ranks whose tokens make the global batch; None for the default group where
            torch.distributed is initialised when it is needed, else this process alone. All of
            its ranks must call `step`, and run the forward pass of global-scope routers, equally
            often.
    """

    def __init__(
        self, model: nn.Module, *, process_group: distributed.ProcessGroup | None = None
    ) -> None:
        self._group = process_group
        self._routers: dict[str, Router] = {}
        for name, module in model.named_modules():
            if isinstance(module, Router) and module.needs_balancer:
                self._routers[name] = module
                if module.config.balance_scope == "global":
                    module.reduce_load = self._reduce
        self._seen: dict[str, Tensor] = {}

    def __len__(self) -> int:
        """Routers that are balanced."""
        return len(self._routers)

    def observe(self, routings: Mapping[str, Routing] | Iterable[tuple[str, Routing]]) -> None:
        """Take in the routings of a training microbatch, after its backward pass.

        Args:
            routings: by the name of the router, or of the module that holds it as ``router``.

        Raises:
            TypeError: if it is a routing without a name.
            ValueError: a balanced router has no routing, or is in evaluation.
        """
        if isinstance(routings, Routing):
            raise TypeError("observe: expected routings by name, such as {'': routing}")
        pairs = dict(routings.items() if isinstance(routings, Mapping) else routings)
        for name, router in self._routers.items():
            routing = pairs.get(name, pairs.get(name.removesuffix("router").removesuffix(".")))
            if routing is None:
                raise ValueError(
                    f"no routing of router {name!r}; there are {', '.join(map(repr, pairs))}"
                )
            key = BIAS_HISTOGRAM if router.config.bias_update == "quantile" else "choice_count_E"
            if not router.training or key not in routing.stats:
                raise ValueError(f"the routing of router {name!r} was not made in training")
            seen = routing.stats[key]
            self._seen[name] = self._seen[name] + seen if name in self._seen else seen.clone()
            if router.config.balance_scope == "global":
                router.step_load_E += self._reduce(routing.stats["choice_count_E"])

    @torch.no_grad()
    def step(self) -> None:
        """Update the biases from what was seen since the last step; call after the optimizer's."""
        for name, router in self._routers.items():
            if router.config.balance_scope == "global":
                router.step_load_E.zero_()
            bias_E = router.selection_bias_E
            if bias_E is None:
                continue
            # A rank that saw nothing takes part all the same: the others wait for its sum.
            shape = (len(bias_E), BINS) if router.config.bias_update == "quantile" else bias_E.shape
            seen = self._reduce(self._seen.get(name, bias_E.new_zeros(shape)))
            if router.config.bias_update == "sign":
                bias_E += sign_update(seen, rate=router.config.bias_rate)
            else:
                share = router.config.top_k / router.config.num_experts
                bias_E.copy_(quantile_bias(seen, bias_E, share=share))
        self._seen = {}

    def _reduce(self, amount: Tensor) -> Tensor:
        # Asked now and not when the balancer is made, which may be before the group is.
        if not (distributed.is_available() and distributed.is_initialized()):
            return amount
        amount = amount.clone()
        distributed.all_reduce(amount, group=self._group)
        return amount


def sign_update(load_E: Tensor, *, rate: float) -> Tensor:
    """The change of the biases by DeepSeek's rule, (E,): up where load is below its mean.

    ``rate * sign(mean load - load_e)``, minus its own mean, so that the biases do not drift
    (torchtitan's form; a common shift changes no selection). Source: Wang et al. 2024 (arXiv
    2408.15664, algorithm 1).
    """
    change_E = rate * torch.sign(load_E.mean() - load_E)
    return change_E - change_E.mean()
