"""Feed-forward networks: the dense one, and the choice between it and experts.

Shape suffixes: T tokens, D model width, F hidden width, H = 2F for gated activations, else F.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from flan_moe.experts import ACTIVATIONS, Experts, SparseFeedForward
from flan_moe.model.config import FlanMoEConfig, StackName
from flan_moe.model.projection import Projection
from flan_moe.routing import build_router


class DenseFeedForward(nn.Module):
    """``wo(dropout(act(wi(x))))`` without biases, T5's network in the experts' layout.

    Args:
        d_model: D.
        d_ff: F.
        activation: a key of `flan_moe.experts.ACTIVATIONS`.
        dropout: on the hidden activation.
        init_factor: scales the initial standard deviations.

    Attributes:
        wi: D to H; for gated activations the first F outputs are the activated gate (T5's
            ``wi_0``), the last F the linear factor (``wi_1``).
        wo: F to D.
    """

    def __init__(
        self,
        *,
        d_model: int,
        d_ff: int,
        activation: str,
        dropout: float,
        init_factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.activation = activation  # by name: the functions themselves cannot be pickled
        self.dropout = dropout
        h_width = 2 * d_ff if ACTIVATIONS[activation].gated else d_ff
        self.wi = Projection(d_model, h_width, std=init_factor * d_model**-0.5)
        self.wo = Projection(d_ff, d_model, std=init_factor * d_ff**-0.5)

    def forward(self, x_TD: Tensor) -> Tensor:
        """(T, D) to (T, D)."""
        a_TF = ACTIVATIONS[self.activation].forward(self.wi(x_TD))
        return self.wo(F.dropout(a_TF, self.dropout, self.training))


def build_dense_feed_forward(config: FlanMoEConfig, d_ff: int) -> DenseFeedForward:
    """A dense network of hidden width ``d_ff`` with the activation and dropout of ``config``."""
    return DenseFeedForward(
        d_model=config.d_model,
        d_ff=d_ff,
        activation=config.activation,
        dropout=config.dropout_rate,
        init_factor=config.initializer_factor,
    )


def build_feed_forward(
    config: FlanMoEConfig, stack: StackName, layer: int
) -> DenseFeedForward | SparseFeedForward:
    """The feed-forward part of a layer: dense, or a router with experts."""
    d_ff = config.ff_width(stack, layer)
    if not config.is_sparse(stack, layer):
        return build_dense_feed_forward(config, d_ff)
    router_config = config.router_config(stack)
    dropout = config.expert_dropout_rate
    return SparseFeedForward(
        build_router(router_config, config.d_model),
        Experts(
            router_config.num_experts,
            config.d_model,
            d_ff,
            activation=config.activation,
            dropout=config.dropout_rate if dropout is None else dropout,
        ),
    )
