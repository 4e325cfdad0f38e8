"""`Router`: score, select, fit into capacity, weigh, measure; and its construction.

Shape suffixes: T tokens, D model width, E experts, K choices per token, C tokens per expert,
N assignments.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flan_moe.routing.build import build_routing
from flan_moe.routing.capacity import expert_capacity, fits_capacity
from flan_moe.routing.config import RouterConfig
from flan_moe.routing.contract import Routing
from flan_moe.routing.losses import balance_loss, z_loss
from flan_moe.routing.score import router_logits
from flan_moe.routing.select import preferred_experts, preferred_tokens
from flan_moe.routing.statistics import router_entropy
from flan_moe.routing.weigh import expert_choice_weights, token_choice_weights


class Router(nn.Module):
    """A learned router: one linear map to expert logits, and the rules of its `RouterConfig`.

    ``"switch"`` and ``"top_k"`` let tokens choose: weights are the raw softmax probabilities
    unless ``normalize_weights``, all first choices are served before all second choices, each
    from left to right, and assignments beyond the capacity are dropped. ``"expert_choice"`` lets
    each expert take the tokens with the highest probability for it; a token gets between 0 and E
    experts, load is balanced by construction and the balance loss is the constant 0.

    The keys of ``losses`` and ``stats`` are the same for every router (see `Routing`).

    Args:
        config: the router's options.
        d_model: D, the width of a token.
        device: where to make the parameter.
        dtype: of the parameter; the maths is float32 in any case.

    Attributes:
        weight: (E, D) parameter, initialised from N(0, 0.02), as in flaxformer.
        config: the options.
    """

    def __init__(
        self,
        config: RouterConfig,
        d_model: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(
            torch.empty(config.num_experts, d_model, device=device, dtype=dtype)
        )
        self.reset_parameters()

    def reset_parameters(self, init_factor: float = 1.0) -> None:
        """Draw the weight from N(0, 0.02 * init_factor)."""
        nn.init.normal_(self.weight, mean=0.0, std=0.02 * init_factor)

    @property
    def is_causal(self) -> bool:
        """False if a token's routing looks at later tokens whatever the capacity."""
        return self.config.is_causal

    def forward(
        self,
        x_TD: Tensor,
        *,
        sequence_T: Tensor | None = None,
        forced_experts: Tensor | None = None,
    ) -> Routing:
        """Route flat, padding-free tokens.

        Args:
            x_TD: (T, D) tokens, any floating dtype; T may be 0. Never written to.
            sequence_T: (T,) sequence ids. Part of the interface for conventions that count per
                sequence; the routers of this version treat all T tokens as one group, so only
                its shape is looked at.
            forced_experts: (T, K) integer. Use these experts, with weights and gradients from
                the live logits, instead of selecting (router replay). Capacity does not apply;
                a negative entry is no expert; entries of one token must differ.

        Returns:
            The routing, with unweighted losses and statistics.

        Raises:
            ValueError: if a shape, a dtype or, on CPU, a forced expert does not fit.
        """
        self._check_inputs(x_TD, sequence_T, forced_experts)
        logits_TE = router_logits(
            x_TD, self.weight, jitter=self.config.jitter if self.training else 0.0
        )
        if forced_experts is not None:
            return self._tokens_choose(logits_TE, forced_experts.long(), capacity=None)
        capacity = self.capacity(x_TD.shape[0])
        if self.config.name == "expert_choice":
            assert capacity is not None  # RouterConfig refuses expert choice without a factor
            return self._experts_choose(logits_TE, capacity)
        expert_TK = preferred_experts(logits_TE.detach(), self.config.top_k)
        return self._tokens_choose(logits_TE, expert_TK, capacity=capacity)

    def capacity(self, num_tokens: int) -> int | None:
        """Tokens per expert for ``num_tokens`` tokens in the current mode; None for no limit."""
        config = self.config
        factor = config.capacity_factor if self.training else config.eval_capacity_factor
        if factor is None and config.name == "expert_choice":
            factor = config.capacity_factor
        if factor is None:
            return None
        return expert_capacity(
            factor,
            num_tokens=num_tokens,
            num_experts=config.num_experts,
            min_capacity=config.min_capacity,
        )

    def extra_repr(self) -> str:
        """The config and width, for ``print(model)``."""
        return f"{self.config}, d_model={self.weight.shape[1]}"

    def _tokens_choose(
        self, logits_TE: Tensor, expert_TK: Tensor, *, capacity: int | None
    ) -> Routing:
        num_tokens, k = expert_TK.shape
        weight_TK = token_choice_weights(
            logits_TE, expert_TK, normalize=self.config.normalize_weights
        )
        if capacity is None:
            keep_TK = expert_TK >= 0
        else:
            keep_TK = fits_capacity(
                expert_TK, num_experts=self.config.num_experts, capacity=capacity
            )
        token_T = torch.arange(num_tokens, device=logits_TE.device)
        return self._routing(
            logits_TE,
            token_N=token_T.repeat_interleave(k),
            expert_N=expert_TK.reshape(-1),
            weight_N=weight_TK.reshape(-1),
            keep_N=keep_TK.reshape(-1),
            balance=balance_loss(logits_TE.softmax(dim=-1), expert_TK),
        )

    def _experts_choose(self, logits_TE: Tensor, capacity: int) -> Routing:
        token_EC = preferred_tokens(logits_TE.detach().softmax(dim=-1), capacity)
        weight_EC = expert_choice_weights(
            logits_TE, token_EC, normalize=self.config.normalize_weights
        )
        expert_E = torch.arange(self.config.num_experts, device=logits_TE.device)
        return self._routing(
            logits_TE,
            token_N=token_EC.reshape(-1),
            expert_N=expert_E.repeat_interleave(capacity),
            weight_N=weight_EC.reshape(-1),
            keep_N=None,
            balance=logits_TE.new_zeros(()),
        )

    def _routing(
        self,
        logits_TE: Tensor,
        *,
        token_N: Tensor,
        expert_N: Tensor,
        weight_N: Tensor,
        keep_N: Tensor | None,
        balance: Tensor,
    ) -> Routing:
        return build_routing(
            token_N=token_N,
            expert_N=expert_N,
            weight_N=weight_N,
            keep_N=keep_N,
            num_tokens=logits_TE.shape[0],
            num_experts=logits_TE.shape[1],
            losses={"balance": balance, "z": z_loss(logits_TE)},
            stats={"router_entropy": router_entropy(logits_TE)},
        )

    def _check_inputs(
        self, x_TD: Tensor, sequence_T: Tensor | None, forced_experts: Tensor | None
    ) -> None:
        num_experts, d_model = self.weight.shape
        if x_TD.ndim != 2 or x_TD.shape[1] != d_model:
            raise ValueError(
                f"router input has shape {tuple(x_TD.shape)}; expected (tokens, {d_model})"
            )
        if not x_TD.is_floating_point():
            raise ValueError(f"router input is {x_TD.dtype}; expected a floating dtype")
        if sequence_T is not None and sequence_T.shape != x_TD.shape[:1]:
            raise ValueError(
                f"sequence_T has shape {tuple(sequence_T.shape)}; expected ({x_TD.shape[0]},)"
            )
        if forced_experts is None:
            return
        if forced_experts.ndim != 2 or forced_experts.shape[0] != x_TD.shape[0]:
            raise ValueError(
                f"forced_experts has shape {tuple(forced_experts.shape)}; expected "
                f"({x_TD.shape[0]}, experts per token)"
            )
        if forced_experts.is_floating_point() or forced_experts.dtype == torch.bool:
            raise ValueError(f"forced_experts is {forced_experts.dtype}; expected an integer dtype")
        if forced_experts.device.type == "cpu" and forced_experts.numel():
            highest = int(forced_experts.max())
            if highest >= num_experts:
                raise ValueError(f"forced_experts names expert {highest}; there are {num_experts}")
            sorted_TK = forced_experts.sort(dim=-1).values
            repeated = (sorted_TK[:, 1:] == sorted_TK[:, :-1]) & (sorted_TK[:, 1:] >= 0)
            if bool(repeated.any()):
                token = int(repeated.any(dim=-1).nonzero()[0])
                raise ValueError(
                    f"forced_experts names an expert twice for token {token}: "
                    f"{forced_experts[token].tolist()}"
                )


def build_router(
    config: RouterConfig,
    d_model: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Router:
    """Make the router that ``config`` names, for tokens of width ``d_model``."""
    return Router(config, d_model, device=device, dtype=dtype)
