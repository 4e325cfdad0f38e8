"""`Router`: the module that chooses experts for tokens.

Shape suffixes: T tokens, D model width, E experts, K choices per token, C tokens per expert,
N assignments, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flan_moe.routing.build import build_routing
from flan_moe.routing.capacity import expert_capacity, fits_capacity
from flan_moe.routing.config import RouterConfig
from flan_moe.routing.contract import Routing
from flan_moe.routing.inputs import check_finite, check_inputs
from flan_moe.routing.losses import choice_counts
from flan_moe.routing.measure import Scored, auxiliary_losses, measurements
from flan_moe.routing.on_demand import OnDemand
from flan_moe.routing.registry import find_router
from flan_moe.routing.score import expert_scores, noisy, router_logits
from flan_moe.routing.second_expert import sampled_second, second_takes_part
from flan_moe.routing.select import (
    hashed_experts,
    preferred_experts,
    preferred_tokens,
    round_robin,
    within_best_groups,
)
from flan_moe.routing.weigh import expert_choice_weights, token_choice_weights


class Router(nn.Module):
    """One linear map to expert logits, and the rules of its `RouterConfig`.

    The way of a token: `score` -> `select` (and `second_expert`) -> fit into `capacity` -> `weigh`
    -> `measure` -> `build` the `Routing`; each stage is a file of pure functions by that
    name. A subclass can replace `select_experts`; see `register_router`.

    ``losses`` has ``balance`` and ``z`` for every router, and the ``extra_losses`` of its config;
    ``stats`` always has the keys of `Routing`. In evaluation without gradients both are computed
    when they are first read.

    Args:
        config: the router's options.
        d_model: D, the width of a token.
        device: where to make the parameter.
        dtype: of the parameter; the maths is float32 in any case, float64 for float64 tokens.

    Attributes:
        weight: (E, D) parameter, initialised from N(0, 0.02), as in flaxformer; None for a router
            that learns nothing (see `RouterConfig.is_learned`).
        selection_bias_E: (E,) float32 buffer, or None; updated by `RouterBalancer`.
        token_expert_VK: (V, K) buffer, the experts of each token id, or None; for hash routing.
        config: the options.

    Raises:
        ValueError: for hash routing without ``vocab_size``, or a width that is none.
    """

    weight: nn.Parameter | None
    selection_bias_E: Tensor | None
    token_expert_VK: Tensor | None
    step_load_E: Tensor | None

    def __init__(
        self,
        config: RouterConfig,
        d_model: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if isinstance(d_model, bool) or not isinstance(d_model, int) or d_model < 1:
            raise ValueError(f"d_model={d_model!r}: expected an integer of at least 1")
        self.config = config
        self.d_model = d_model
        self.reduce_load: Callable[[Tensor], Tensor] | None = None
        experts = config.num_experts
        weight = None
        if config.is_learned:
            weight = nn.Parameter(torch.empty(experts, d_model, device=device, dtype=dtype))
        self.register_parameter("weight", weight)
        bias = table = load = None
        if config.bias_update is not None:
            bias = torch.empty(experts, dtype=torch.float32, device=device)
        if config.selection == "hash":
            if config.vocab_size is None:
                raise ValueError(
                    "router option vocab_size=None: expected a number for hash routing"
                )
            shape = (config.vocab_size, config.top_k)
            table = torch.empty(shape, dtype=torch.int32, device=device)
        if config.balance_scope == "global":
            load = torch.empty(experts, dtype=torch.float32, device=device)
        self.register_buffer("selection_bias_E", bias)
        self.register_buffer("token_expert_VK", table)
        self.register_buffer("step_load_E", load, persistent=False)  # zero between steps
        self.reset_parameters()

    def reset_parameters(self, init_factor: float = 1.0) -> None:
        """Draw the weight from N(0, 0.02 * init_factor), and reset the buffers."""
        if self.weight is not None:
            nn.init.normal_(self.weight, mean=0.0, std=0.02 * init_factor)
        self.reset_buffers()

    @torch.no_grad()
    def reset_buffers(self) -> None:
        """Biases and loads to zero, the hash table to the one of its seed."""
        if self.selection_bias_E is not None:
            self.selection_bias_E.zero_()
        if self.step_load_E is not None:
            self.step_load_E.zero_()
        if self.token_expert_VK is not None and not self.token_expert_VK.is_meta:
            vocab_size, k = self.token_expert_VK.shape
            table_VK = hashed_experts(
                vocab_size=vocab_size,
                num_experts=self.num_experts,
                k=k,
                seed=self.config.hash_seed,
            )
            self.token_expert_VK.copy_(table_VK)

    @property
    def num_experts(self) -> int:
        """E."""
        return self.config.num_experts

    @property
    def is_causal(self) -> bool:
        """See `RouterConfig.is_causal`."""
        return self.config.is_causal

    @property
    def needs_balancer(self) -> bool:
        """Whether a `RouterBalancer` has something to do for it."""
        return self.selection_bias_E is not None or self.step_load_E is not None

    def forward(
        self,
        x_TD: Tensor,
        *,
        sequence_T: Tensor | None = None,
        token_id_T: Tensor | None = None,
        forced_experts: Tensor | None = None,
    ) -> Routing:
        """Route flat, padding-free tokens.

        Args:
            x_TD: (T, D) tokens, any floating dtype; T may be 0. Never written to.
            sequence_T: (T,) sequence ids in [0, T), for a balance loss per sequence; without them
                all tokens count as one sequence.
            token_id_T: (T,) vocabulary ids, which hash routing needs and others ignore.
            forced_experts: (T, K) integer. Use these experts, with weights and gradients from
                the live logits, instead of selecting (router replay). Capacity and second-expert
                policies do not apply; a negative entry is no expert; entries of one token must
                differ. Weights that sum to one do so over the given experts.

        Returns:
            The routing, with unweighted losses and statistics.

        Raises:
            ValueError: if a shape or dtype or, on CPU, a forced expert or token id does not fit,
                or with ``check_finite`` a logit is not finite.
        """
        check_inputs(self, x_TD, sequence_T, token_id_T, forced_experts)
        config = self.config
        scored = self.score(x_TD)
        if forced_experts is not None:
            expert_TK = forced_experts.long()
            weight_TK = self._weights(scored, expert_TK, expert_TK >= 0)
            fields = _assignments(expert_TK, weight_TK, expert_TK >= 0)
        elif config.selection == "expert_choice":
            expert_TK = None
            fields = self._experts_choose(scored)
        else:
            expert_TK = self.select_experts(
                scored.scores_TE.detach(), scored.noisy_logits_TE.detach(), token_id_T
            )
            fields = self._tokens_choose(scored, expert_TK)
        chosen = fields["expert_N"][:, None] if expert_TK is None else expert_TK
        balanced = None if config.selection == "expert_choice" else expert_TK
        losses = partial(
            auxiliary_losses,
            config,
            scored,
            balanced,
            sequence_T=sequence_T,
            load_E=None if balanced is None else self._step_load(balanced),
        )
        bias_E = self.selection_bias_E if self.training else None
        stats = partial(measurements, config, scored, chosen, bias_E=bias_E)
        return build_routing(
            **fields,
            num_tokens=x_TD.shape[0],
            num_experts=config.num_experts,
            losses=OnDemand(losses) if self._on_demand else losses(),
            stats=OnDemand(stats) if self._on_demand else stats(),
        )

    def score(self, x_TD: Tensor) -> Scored:
        """Logits, noise and scores of tokens.

        Raises:
            ValueError: with ``check_finite``, a logit is not finite.
        """
        config = self.config
        logits_TE = self.logits(x_TD)
        if config.check_finite:
            check_finite(logits_TE)
        noisy_logits_TE = logits_TE
        if self.training and config.noise > 0.0:
            noisy_logits_TE = noisy(logits_TE, config.noise)
        return Scored(
            logits_TE=logits_TE,
            noisy_logits_TE=noisy_logits_TE,
            scores_TE=expert_scores(noisy_logits_TE, config.score),
            log_partition_T=None if self._on_demand else logits_TE.logsumexp(dim=-1),
        )

    def logits(self, x_TD: Tensor) -> Tensor:
        """(T, E) logits, float32 or float64; zeros where nothing is learned."""
        if self.weight is None:
            dtype = torch.promote_types(x_TD.dtype, torch.float32)
            return x_TD.new_zeros((x_TD.shape[0], self.num_experts), dtype=dtype)
        return router_logits(x_TD, self.weight, jitter=self.config.jitter if self.training else 0.0)

    def select_experts(
        self, scores_TE: Tensor, logits_TE: Tensor, token_id_T: Tensor | None
    ) -> Tensor:
        """The experts that each token chooses, (T, K) int64, best first; carries no gradient."""
        config = self.config
        if config.selection == "hash":
            return self.token_expert_VK.index_select(0, token_id_T).long()
        if config.selection == "uniform":
            return round_robin(
                scores_TE.shape[0], config.num_experts, config.top_k, device=scores_TE.device
            )
        if self.selection_bias_E is not None:
            scores_TE = scores_TE + self.selection_bias_E
        if config.top_groups < config.num_groups:
            scores_TE = within_best_groups(
                scores_TE, num_groups=config.num_groups, top_groups=config.top_groups
            )
        if self._second_expert == "sampling":
            return sampled_second(scores_TE, logits_TE)
        return preferred_experts(scores_TE, config.top_k)

    def capacity(self, num_tokens: int) -> int | None:
        """Tokens per expert for ``num_tokens`` tokens in the current mode; None for no limit."""
        config = self.config
        factor = config.capacity_factor if self.training else config.eval_capacity_factor
        if factor is None and config.selection == "expert_choice":
            factor = config.capacity_factor
        if factor is None:
            return None
        return expert_capacity(
            factor,
            num_tokens=num_tokens,
            num_experts=config.num_experts,
            choices=config.top_k if config.capacity_per == "total" else 1,
            min_capacity=config.min_capacity,
            rounding=config.capacity_rounding,
            multiple=config.capacity_multiple,
        )

    def extra_repr(self) -> str:
        """The config and width, for ``print(model)``."""
        return f"{self.config}, d_model={self.d_model}"

    def __getstate__(self) -> dict[str, Any]:
        # A copy, or what is unpickled, belongs to no balancer: a process group cannot be copied.
        return {**self.__dict__, "reduce_load": None}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        # Steps of 1e-3 vanish in a bfloat16 bias: casting the model leaves the buffers in float32.
        names = ("selection_bias_E", "step_load_E")
        before = {name: getattr(self, name) for name in names}
        super()._apply(fn, recurse)
        for name, value in before.items():
            after = getattr(self, name)
            if after is not None and after.dtype != value.dtype:
                setattr(self, name, value.to(after.device))
        return self

    @property
    def _on_demand(self) -> bool:
        """Whether losses and statistics wait until somebody reads them."""
        return not (self.training or torch.is_grad_enabled() or torch.compiler.is_compiling())

    @property
    def _second_expert(self) -> str:
        return self.config.second_expert if self.training else self.config.eval_second_expert

    def _tokens_choose(self, scored: Scored, expert_TK: Tensor) -> dict[str, Tensor]:
        config = self.config
        scores_TE = scored.scores_TE.detach()
        wanted_TK = self._wanted(scored, expert_TK)
        capacity = self.capacity(scores_TE.shape[0])
        if capacity is None:
            keep_TK = wanted_TK
        else:
            gates = config.drop_order in ("priority", "gate")
            keep_TK = fits_capacity(
                torch.where(wanted_TK, expert_TK, -1),
                num_experts=config.num_experts,
                capacity=capacity,
                order=config.drop_order,
                gate_TK=scores_TE.gather(-1, expert_TK) if gates else None,
            )
        over_TK = keep_TK if config.renormalise == "after_drop" else expert_TK >= 0
        weight_TK = self._weights(scored, expert_TK, over_TK)
        return _assignments(expert_TK, weight_TK, keep_TK)

    @torch.no_grad()
    def _wanted(self, scored: Scored, expert_TK: Tensor) -> Tensor:
        """Which choices take part at all, (T, K) bool."""
        wanted_TK = expert_TK >= 0
        if self._second_expert in ("threshold", "random"):
            share_TK = token_choice_weights(
                scored.noisy_logits_TE,
                scored.scores_TE,
                expert_TK,
                score=self.config.score,
                over_TK=wanted_TK,
            )
            second_T = second_takes_part(
                share_TK[:, 1], self._second_expert, self.config.second_threshold
            )
            wanted_TK = torch.stack([wanted_TK[:, 0], wanted_TK[:, 1] & second_T], dim=-1)
        return wanted_TK

    def _weights(self, scored: Scored, expert_TK: Tensor, over_TK: Tensor) -> Tensor:
        config = self.config
        if config.weights == "uniform":
            dtype = scored.logits_TE.dtype
            weight_TK = torch.full_like(expert_TK, 1.0 / config.top_k, dtype=dtype)
        else:
            weight_TK = token_choice_weights(
                scored.noisy_logits_TE,
                scored.scores_TE,
                expert_TK,
                score=config.score,
                over_TK=None if config.renormalise == "never" else over_TK,
            )
        return weight_TK if config.weight_scale == 1.0 else weight_TK * config.weight_scale

    def _experts_choose(self, scored: Scored) -> dict[str, Tensor]:
        config, scores_TE = self.config, scored.scores_TE
        capacity = self.capacity(scores_TE.shape[0])
        assert capacity is not None  # RouterConfig refuses expert choice without a factor
        token_EC = preferred_tokens(scores_TE.detach(), capacity)
        weight_EC = expert_choice_weights(
            scored.noisy_logits_TE,
            scores_TE,
            token_EC,
            score=config.score,
            renormalise=config.renormalise != "never",
        )
        expert_E = torch.arange(config.num_experts, device=scores_TE.device)
        return {
            "token_N": token_EC.reshape(-1),
            "expert_N": expert_E.repeat_interleave(capacity),
            "weight_N": weight_EC.reshape(-1) * config.weight_scale,
        }

    def _step_load(self, expert_TK: Tensor) -> Tensor | None:
        """Assignments of each expert in the step so far, these included; None for this call's."""
        if self.step_load_E is None or not self.training:
            return None
        load_E = choice_counts(expert_TK, self.num_experts)
        if self.reduce_load is not None:
            load_E = self.reduce_load(load_E)
        return self.step_load_E + load_E


def build_router(
    config: RouterConfig,
    d_model: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Router:
    """Make the router that ``config`` names, for tokens of width ``d_model``.

    Raises:
        TypeError: if ``config`` is no `RouterConfig`, such as a name or a dict.
        ValueError: see `Router`.
    """
    if not isinstance(config, RouterConfig):
        raise TypeError(f"build_router: config={config!r}: expected a RouterConfig")
    kind = find_router(config.name).router or Router
    return kind(config, d_model, device=device, dtype=dtype)


def _assignments(expert_TK: Tensor, weight_TK: Tensor, keep_TK: Tensor) -> dict[str, Tensor]:
    num_tokens, k = expert_TK.shape
    token_T = torch.arange(num_tokens, device=expert_TK.device)
    return {
        "token_N": token_T.repeat_interleave(k),
        "expert_N": expert_TK.reshape(-1),
        "weight_N": weight_TK.reshape(-1),
        "keep_N": keep_TK.reshape(-1),
    }
