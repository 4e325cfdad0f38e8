"""What a routing did: load, confidence, agreement between routings, specialisation.

Pure functions, each with its definition. They run where their arguments live, never wait for a
device (unless a docstring says so), return float32, and cost time and memory linear in the rows
or in T * E. Two kinds of argument cover everything: ``load_E``, tokens per expert
(``routing.stats["expert_load_E"]``), and ``chosen_TK``, the experts of each token
(`chosen_experts`). Both can be gathered over batches: add the loads, concatenate the choices.
"""

from flan_moe.routing.metrics.agreement import disagreement, expert_saturation, routing_kl
from flan_moe.routing.metrics.choices import chosen_experts
from flan_moe.routing.metrics.confidence import router_margin
from flan_moe.routing.metrics.load import (
    dead_experts,
    dropped_assignments,
    dropped_tokens,
    expert_usage,
    load_cv,
    load_share,
    max_violation,
    usage_entropy,
)
from flan_moe.routing.metrics.specialisation import (
    co_activation,
    domain_specialisation,
    expert_counts,
    expert_vocabulary_specialisation,
    normalised_mutual_information,
    vocabulary_specialisation,
)

__all__ = [
    "chosen_experts",
    "co_activation",
    "dead_experts",
    "disagreement",
    "domain_specialisation",
    "dropped_assignments",
    "dropped_tokens",
    "expert_counts",
    "expert_saturation",
    "expert_usage",
    "expert_vocabulary_specialisation",
    "load_cv",
    "load_share",
    "max_violation",
    "normalised_mutual_information",
    "router_margin",
    "routing_kl",
    "usage_entropy",
    "vocabulary_specialisation",
]
