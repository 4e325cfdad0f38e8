"""Expert feed-forward layers over a compressed-sparse-row `Routing`, forward and backward."""

from flan_moe.experts.__about__ import __version__
from flan_moe.experts.activations import ACTIVATIONS
from flan_moe.experts.backend import MainGrads
from flan_moe.experts.ffn import BACKENDS, expert_ffn
from flan_moe.experts.layer import Experts, SparseFeedForward
from flan_moe.experts.shared import SharedExperts
from flan_moe.experts.weights import ExpertWeights

__all__ = [
    "ACTIVATIONS",
    "BACKENDS",
    "ExpertWeights",
    "Experts",
    "MainGrads",
    "SharedExperts",
    "SparseFeedForward",
    "__version__",
    "expert_ffn",
]
