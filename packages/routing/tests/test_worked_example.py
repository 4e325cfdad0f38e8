"""Six tokens, three experts, capacity two, worked by hand from each router's published rule.

The rows and weights agree with flaxformer's tokens-choose and experts-choose routers.
"""

import math
from itertools import pairwise

import pytest
import torch

from flan_moe.routing import Router, RouterConfig, build_router

PROBS = [
    [0.7, 0.2, 0.1],
    [0.6, 0.3, 0.1],
    [0.5, 0.4, 0.1],
    [0.9, 0.06, 0.04],
    [0.2, 0.5, 0.3],
    [0.1, 0.3, 0.6],
]


def route(name, **options):
    """Route PROBS with capacity 2 (factor 1 for 6 tokens on 3 experts)."""
    options = {"capacity_factor": 1.0, "min_capacity": 0, **options}
    router = build_router(RouterConfig(name=name, num_experts=3, **options), d_model=3)
    with torch.no_grad():
        router.weight.copy_(torch.eye(3))
        routing = router(torch.tensor(PROBS).log())
    routing.validate()
    return routing


def tokens_by_expert(routing):
    offsets = routing.expert_offsets.tolist()
    tokens = routing.row_token_R.tolist()
    return [tokens[a:b] for a, b in pairwise(offsets)]


def weight_by_token(routing):
    offsets = routing.token_offsets.tolist()
    weight_R = routing.row_weight_R[routing.token_row_R.long()]
    return [float(weight_R[a:b].sum()) for a, b in pairwise(offsets)]


@pytest.mark.parametrize(
    ("name", "options", "tokens", "weights", "balance"),
    [
        ("switch", {}, [[0, 1], [4], [5]], [0.7, 0.6, 0, 0, 0.5, 0.6], 1.25),
        ("top_k", {"top_k": 1}, [[0, 1], [4], [5]], [0.7, 0.6, 0, 0, 0.5, 0.6], 1.25),
        (
            "switch",
            {"drop_order": "priority"},
            [[0, 3], [4], [5]],
            [0.7, 0, 0, 0.9, 0.5, 0.6],
            1.25,
        ),
        (
            "flaxformer_top2",
            {"drop_order": "choice"},
            [[0, 1], [0, 4], [4, 5]],
            [0.9, 0.6, 0, 0, 0.8, 0.6],
            2.0867,
        ),
        ("flaxformer_top2", {}, [[0, 3], [3, 4], [4, 5]], [0.7, 0, 0, 0.96, 0.8, 0.6], 2.0867),
        ("expert_choice", {}, [[0, 3], [2, 4], [4, 5]], [0.7, 0, 0.4, 0.9, 0.8, 0.6], 0.0),
        (
            "st_moe",
            {"second_expert": "all"},
            [[0, 1], [0, 4], [4, 5]],
            [1, 0.6667, 0, 0, 1, 0.6667],
            1.25,
        ),
        # Tokens 0, 3 and 4's seconds have shares of .22, .06 and .375 of the pair; the bound is .3.
        (
            "st_moe",
            {"second_expert": "threshold", "second_threshold": 0.3},
            [[0, 1], [1, 4], [4, 5]],
            [0.7 / 0.9, 1, 0, 0, 1, 0.6667],
            1.25,
        ),
        # Renormalised over what was kept: a token that lost one of two experts gives the other 1.
        ("nllb", {"capacity_factor": 0.5}, [[0, 1], [0, 4], [4, 5]], [1, 1, 0, 0, 1, 1], 1.25),
        # One token after the other, with both of its choices; no later token comes first.
        (
            "top_k",
            {"drop_order": "token"},
            [[0, 1], [0, 1], [4, 5]],
            [0.9, 0.9, 0, 0, 0.3, 0.6],
            2.0867,
        ),
        # The two largest gates of each expert: .9 and .7; .5 and .4; .6 and .3.
        (
            "top_k",
            {"drop_order": "gate"},
            [[0, 3], [2, 4], [4, 5]],
            [0.7, 0, 0.4, 0.9, 0.8, 0.6],
            2.0867,
        ),
    ],
)
def test_rows_weights_and_balance(name, options, tokens, weights, balance):
    routing = route(name, **options)
    assert tokens_by_expert(routing) == tokens
    assert weight_by_token(routing) == pytest.approx(weights, abs=5e-5)
    assert float(routing.losses["balance"]) == pytest.approx(balance, abs=5e-5)
    assert routing.stats["expert_load_E"].tolist() == [len(rows) for rows in tokens]
    dropped = sum(1 for w in weights if w == 0)
    assert float(routing.stats["dropped_fraction"]) == pytest.approx(dropped / 6)


def test_normalised_top_2_weights_are_taken_before_capacity():
    routing = route("top_k", top_k=2, renormalise="before_drop")
    # Tokens 1 and 5 lost their second choice; the first keeps its share of the pair.
    assert weight_by_token(routing) == pytest.approx([1, 0.6 / 0.9, 0, 0, 1, 0.6 / 0.9], abs=1e-6)


def test_normalised_expert_choice_weights_sum_to_one_where_anyone_chose():
    routing = route("expert_choice", renormalise="before_drop")
    assert weight_by_token(routing) == pytest.approx([1, 0, 1, 1, 1, 1], abs=1e-6)


def test_entropy_and_z_loss():
    routing = route("switch")
    entropy = sum(-p * math.log(p) for row in PROBS for p in row) / len(PROBS)
    assert float(routing.stats["router_entropy"]) == pytest.approx(entropy, rel=1e-6)
    assert float(routing.losses["z"]) == pytest.approx(0.0, abs=1e-12)  # logits are log p


def test_undecided_router_is_balanced_and_has_z_loss_of_log_experts_squared():
    router = Router(RouterConfig(num_experts=3), d_model=3)
    torch.nn.init.zeros_(router.weight)
    with torch.no_grad():
        routing = router(torch.randn(6, 3))
    assert float(routing.losses["z"]) == pytest.approx(math.log(3) ** 2, rel=1e-6)
    assert float(routing.losses["balance"]) == pytest.approx(1.0, rel=1e-6)
    assert float(routing.stats["router_entropy"]) == pytest.approx(math.log(3), rel=1e-6)
    assert tokens_by_expert(routing)[1:] == [[], []]  # ties go to the lowest index
