"""The dense model that a sparse one is fairly compared with."""

from __future__ import annotations

import copy

from flan_moe.model.config import STACK_NAMES, FlanMoEConfig, StackName
from flan_moe.model.inventory import experts_per_token


def dense_twin(config: FlanMoEConfig) -> FlanMoEConfig:
    """A dense model with the same FLOPs per token.

    A sparse layer becomes a dense one whose hidden width is an expert's times the number of experts
    that work on a token (on average, for expert choice), plus ``d_ff`` if an extra dense network
    follows them, so that these networks cost exactly the same. The router has no counterpart: the
    twin lacks its ``2 * d_model * num_experts`` FLOPs per sparse layer, 1.1 percent of the
    total for the preset with 256 experts and under one percent for all others. Everything else is
    equal.

    Args:
        config: a sparse model; a dense one is its own twin.

    Returns:
        A new configuration without routers.
    """
    twin = copy.deepcopy(config)
    twin.dense_ff_widths = {stack: _widths(config, stack) for stack in STACK_NAMES}
    twin.encoder_router = None
    twin.decoder_router = None
    twin.expert_d_ff = None
    twin.extra_feed_forward = False
    twin.check()
    return twin


def _widths(config: FlanMoEConfig, stack: StackName) -> list[int]:
    router = config.router_config(stack)
    widths = []
    for layer in range(config.layer_count(stack)):
        width = config.ff_width(stack, layer)
        if config.is_sparse(stack, layer):
            width = round(experts_per_token(router) * width)
        if config.has_extra_feed_forward(stack, layer):
            width += config.d_ff
        widths.append(width)
    return widths
