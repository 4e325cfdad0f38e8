"""`Experts` and `SparseFeedForward`: thin modules around `expert_ffn` and a router.

Shape suffixes: T tokens, K choices, D model width, E experts, F hidden width, H = 2F if gated,
else F.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flan_moe.experts.activations import get_activation
from flan_moe.experts.ffn import check_backend, check_dropout, expert_ffn
from flan_moe.experts.weights import ExpertWeights
from flan_moe.routing import Router, Routing


class Experts(nn.Module):
    """E feed-forward networks without biases, each the T5 one.

    Args:
        num_experts: E.
        d_model: D.
        d_ff: F, the hidden width of one expert.
        activation: a key of `ACTIVATIONS`.
        dropout: expert dropout, on the hidden activation, in training.
        backend: see `expert_ffn`.
        device: where to make the parameters.
        dtype: of the parameters.

    Attributes:
        wi: (E, D, H) parameter; see `ExpertWeights` for the layout.
        wo: (E, F, D) parameter.

    Raises:
        ValueError: naming the option, its value and what was expected.
    """

    def __init__(
        self,
        num_experts: int,
        d_model: int,
        d_ff: int,
        *,
        activation: str = "geglu",
        dropout: float = 0.0,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("num_experts", num_experts), ("d_model", d_model), ("d_ff", d_ff)):
            if size < 1:
                raise ValueError(f"{name}={size!r}: expected at least 1")
        check_backend(backend)
        check_dropout(dropout)
        h_width = 2 * d_ff if get_activation(activation).gated else d_ff
        self.activation = activation
        self.dropout = dropout
        self.backend = backend
        factory = {"device": device, "dtype": dtype}
        self.wi = nn.Parameter(torch.empty(num_experts, d_model, h_width, **factory))
        self.wo = nn.Parameter(torch.empty(num_experts, d_ff, d_model, **factory))
        self.reset_parameters()

    @property
    def num_experts(self) -> int:
        """E."""
        return self.wi.shape[0]

    @property
    def d_model(self) -> int:
        """D."""
        return self.wi.shape[1]

    @property
    def weights(self) -> ExpertWeights:
        """The parameters as `expert_ffn` takes them."""
        return ExpertWeights(self.wi, self.wo)

    def reset_parameters(self, init_factor: float = 1.0) -> None:
        """Initialise every expert as T5 initialises its feed-forward layer.

        ``wi`` from N(0, init_factor * D**-0.5), ``wo`` from N(0, init_factor * F**-0.5).
        """
        nn.init.normal_(self.wi, mean=0.0, std=init_factor * self.wi.shape[1] ** -0.5)
        nn.init.normal_(self.wo, mean=0.0, std=init_factor * self.wo.shape[1] ** -0.5)

    def forward(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """The weighted sum of each token's experts, (T, D); see `expert_ffn`."""
        return expert_ffn(
            x_TD,
            routing,
            self.weights,
            activation=self.activation,
            dropout=self.dropout,
            training=self.training,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """Sizes and options, for ``print(model)``."""
        experts, d_ff, d_model = self.wo.shape
        return (
            f"num_experts={experts}, d_model={d_model}, d_ff={d_ff}, "
            f"activation={self.activation!r}, dropout={self.dropout}, backend={self.backend!r}"
        )


class SparseFeedForward(nn.Module):
    """A router and the experts it routes to.

    Args:
        router: decides which expert works on which token.
        experts: do the work.

    Raises:
        ValueError: if the two disagree on the number of experts or the width.
    """

    def __init__(self, router: Router, experts: Experts) -> None:
        super().__init__()
        routed = (router.num_experts, router.d_model)
        if routed != (experts.num_experts, experts.d_model):
            raise ValueError(
                f"the router is for {routed[0]} experts of width {routed[1]}, the experts are "
                f"{experts.num_experts} of width {experts.d_model}"
            )
        self.router = router
        self.experts = experts

    def forward(
        self,
        x_TD: Tensor,
        *,
        sequence_T: Tensor | None = None,
        token_id_T: Tensor | None = None,
        forced_experts: Tensor | None = None,
    ) -> tuple[Tensor, Routing]:
        """Route flat tokens and run their experts.

        Args:
            x_TD: (T, D) tokens without padding.
            sequence_T: (T,) sequence ids, for the router.
            token_id_T: (T,) vocabulary ids, for a hash router.
            forced_experts: (T, K) experts to use instead of selecting, for the router.

        Returns:
            (T, D) outputs, zero for tokens that no expert took, and the routing with its
            auxiliary losses and statistics.
        """
        routing = self.router(
            x_TD, sequence_T=sequence_T, token_id_T=token_id_T, forced_experts=forced_experts
        )
        return self.experts(x_TD, routing), routing
