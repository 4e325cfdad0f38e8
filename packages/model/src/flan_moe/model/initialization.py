"""Initial weights, in the way of T5.

Standard deviations, each times ``initializer_factor``: 1 for the embedding; ``D**-0.5`` for keys,
values, the input side of feed-forward networks and position biases; ``(D * K)**-0.5`` for queries,
because T5 does not scale attention scores; the inverse root of the fan-in for everything that
writes to the residual stream. Routers are N(0, 0.02) at any factor.

An untied head is N(0, D**-0.5), as in T5X's ``logits_dense``. transformers' T5 uses N(0, 1)
there, which makes initial logits ``D**0.5`` times too large to train from scratch.

Shape suffixes: D model width, K width of a head.
"""

from __future__ import annotations

from torch import Tensor, nn

from flan_moe.experts import Experts
from flan_moe.model.config import FlanMoEConfig
from flan_moe.model.position_bias import RelativePositionBias
from flan_moe.model.projection import Projection
from flan_moe.routing import Router

ROUTER_STD = 0.02


def initialize_module(module: nn.Module, config: FlanMoEConfig) -> None:
    """Initialise the weights that ``module`` itself owns; transformers calls this for each module.

    Weights that transformers has marked as read from a checkpoint are left alone.
    """
    factor = config.initializer_factor
    narrow = factor * config.d_model**-0.5
    if isinstance(module, Projection):
        _normal(module.weight, module.std)
    elif isinstance(module, Experts):
        _normal(module.wi, narrow)
        _normal(module.wo, factor * module.wo.shape[1] ** -0.5)
    elif isinstance(module, Router):
        if module.weight is not None:
            _normal(module.weight, ROUTER_STD)
        if not any(getattr(b, "_is_hf_initialized", False) for b in module.buffers()):
            module.reset_buffers()
    elif isinstance(module, RelativePositionBias):
        _normal(module.weight, narrow)
    elif isinstance(module, nn.Embedding):
        _normal(module.weight, factor)
    elif isinstance(module, nn.RMSNorm):
        _fill(module.weight, factor)


def _normal(weight: Tensor, std: float) -> None:
    if not getattr(weight, "_is_hf_initialized", False):
        nn.init.normal_(weight, std=std)


def _fill(weight: Tensor, value: float) -> None:
    if not getattr(weight, "_is_hf_initialized", False):
        nn.init.constant_(weight, value)
