"""Which routers look at later tokens, and which symmetries routing has."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_routers import D_MODEL, dense_weights, make_router, route, rows_of

from flan_moe.routing import PRESETS, ROUTER_NAMES, RouterConfig

LEARNED = [name for name in ROUTER_NAMES if PRESETS[name].options.get("weights") != "uniform"]
BY_SCORE = [n for n in LEARNED if PRESETS[n].options.get("selection", "top_k") == "top_k"]


def changed_later(x_TD, changed, seed):
    """The same tokens up to ``changed``, others from there."""
    generator = torch.Generator().manual_seed(seed)
    other_TD = x_TD.clone()
    other_TD[changed:] = torch.randn(len(x_TD) - changed, D_MODEL, generator=generator)
    return other_TD


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from([n for n in ROUTER_NAMES if RouterConfig(name=n).is_causal]),
    binding=st.booleans(),
    seed=st.integers(0, 10_000),
    changed=st.integers(1, 11),
)
def test_served_from_left_to_right_a_token_does_not_see_later_ones(name, binding, seed, changed):
    # A capacity that grows with T would see how many come later, so it is fixed.
    options = {"capacity_factor": None}
    if binding:
        options = {"capacity_factor": 1e-3, "min_capacity": 3, "drop_order": "token"}
    router = make_router(name, seed, **options)
    x_TD = torch.randn(12, D_MODEL)
    before = route(router, x_TD, seed)
    after = route(router, changed_later(x_TD, changed, seed), seed)
    if binding and name != "uniform":
        assert before.num_rows < 12 * router.config.top_k
    for token in range(changed):
        assert rows_of(before, token) == rows_of(after, token)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("expert_choice", {"capacity_factor": 1.0, "min_capacity": 1}),
        ("switch", {"drop_order": "priority", "capacity_factor": 0.5, "min_capacity": 1}),
        ("flaxformer_top2", {"capacity_factor": 0.5, "min_capacity": 1}),
        ("top_k", {"drop_order": "gate", "capacity_factor": 0.5, "min_capacity": 1}),
    ],
)
def test_expert_choice_and_priority_do_look_at_later_tokens(name, options):
    router = make_router(name, **options)
    assert not router.is_causal
    x_TD = torch.randn(8, D_MODEL)
    seen = {str(rows_of(route(router, changed_later(x_TD, 1, s)), 0)) for s in range(40)}
    assert len(seen) > 1


def test_second_choices_wait_for_later_first_choices_in_the_order_of_the_references():
    """Known, and why decoders are better served one token after the other."""
    options = {"capacity_factor": 1e-3, "min_capacity": 3}
    x_TD = torch.randn(12, D_MODEL, generator=torch.Generator().manual_seed(0))
    for order, looks in (("choice", True), ("token", False)):
        router = make_router("top_k", drop_order=order, **options)
        seen = {
            str([rows_of(route(router, changed_later(x_TD, 6, s)), t) for t in range(6)])
            for s in range(40)
        }
        assert (len(seen) > 1) == looks


@pytest.mark.parametrize("name", ROUTER_NAMES)
def test_evaluation_is_dropless_so_that_a_token_does_not_see_its_batch(name):
    if name == "expert_choice":
        pytest.skip("experts choose among the tokens of a batch by definition")
    router = make_router(name, capacity_factor=0.5).eval()
    x_TD = torch.randn(32, D_MODEL)
    routing = route(router, x_TD)
    assert float(routing.stats["dropped_fraction"]) == 0.0
    for token in (0, 12, 24):  # positions with the same place in the round robin
        alone = router(x_TD[token : token + 1], token_id_T=torch.tensor([token % 11]))
        assert [e for e, _ in rows_of(alone, 0)] == [e for e, _ in rows_of(routing, token)]


@pytest.mark.parametrize("name", BY_SCORE)
def test_permuting_tokens_permutes_rows_where_nobody_is_dropped(name):
    router = make_router(name, capacity_factor=None).eval()
    x_TD = torch.randn(20, D_MODEL)
    turn_T = torch.randperm(20)
    direct, turned = (dense_weights(router(x)) for x in (x_TD, x_TD[turn_T]))
    torch.testing.assert_close(turned, direct[turn_T])


def test_permuting_tokens_permutes_expert_choice():
    router = make_router("expert_choice")
    x_TD = torch.randn(20, D_MODEL)
    turn_T = torch.randperm(20)
    direct, turned = (dense_weights(router(x)) for x in (x_TD, x_TD[turn_T]))
    torch.testing.assert_close(turned, direct[turn_T])


@pytest.mark.parametrize(
    "name", [n for n in [*BY_SCORE, "expert_choice"] if "deepseek_v3" not in n]
)
def test_permuting_experts_permutes_rows(name):
    router = make_router(name).eval()
    experts = router.num_experts
    x_TD = torch.randn(20, D_MODEL)
    direct = dense_weights(router(x_TD))
    # Groups are of neighbours: turning all of them round keeps them together.
    turn_E = torch.randperm(experts) if name != "deepseek_v3" else torch.arange(experts).flip(0)
    with torch.no_grad():
        router.weight.copy_(router.weight[turn_E])
    torch.testing.assert_close(dense_weights(router(x_TD)), direct[:, turn_E])


@pytest.mark.parametrize("name", [n for n in ROUTER_NAMES if n != "expert_choice"])
@pytest.mark.parametrize("order", ["token", "choice", "priority", "gate"])
def test_a_capacity_of_all_tokens_equals_none(name, order):
    x_TD = torch.randn(20, D_MODEL)
    roomy = make_router(name, capacity_factor=100.0, drop_order=order)
    without = make_router(name, capacity_factor=None)
    assert roomy.capacity(20) == 20
    torch.testing.assert_close(
        dense_weights(route(roomy, x_TD)), dense_weights(route(without, x_TD)), rtol=0, atol=0
    )
