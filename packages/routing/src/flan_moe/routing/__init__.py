"""Routers for sparse mixture-of-experts layers.

A `Router` turns flat tokens into a `Routing`: which expert works on which token, with which
weight, plus auxiliary losses and statistics. Needs torch and nothing else.
"""

from flan_moe.routing.__about__ import __version__
from flan_moe.routing.balancing import RouterBalancer
from flan_moe.routing.build import build_routing
from flan_moe.routing.capacity import expert_capacity, fits_capacity
from flan_moe.routing.config import ROUTER_NAMES, RouterConfig
from flan_moe.routing.contract import Routing
from flan_moe.routing.losses import balance_loss, importance_loss, load_loss, z_loss
from flan_moe.routing.metrics import chosen_experts
from flan_moe.routing.presets import PRESETS, RouterPreset
from flan_moe.routing.registry import register_router, router_names
from flan_moe.routing.replay import Recording, record_routing, replay_routing
from flan_moe.routing.router import Router, build_router

__all__ = [
    "PRESETS",
    "ROUTER_NAMES",
    "Recording",
    "Router",
    "RouterBalancer",
    "RouterConfig",
    "RouterPreset",
    "Routing",
    "__version__",
    "balance_loss",
    "build_router",
    "build_routing",
    "chosen_experts",
    "expert_capacity",
    "fits_capacity",
    "importance_loss",
    "load_loss",
    "record_routing",
    "register_router",
    "replay_routing",
    "router_names",
    "z_loss",
]
