"""Every named router, with random options, against an oracle that routes one token at a time."""

import numpy as np
import pytest
import routing_oracle
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_moe.routing import PRESETS, ROUTER_NAMES, RouterConfig, build_router

FACTORS = st.sampled_from([0.05, 0.5, 1.0, 1.25, 4.0])
KINDS = st.sampled_from(["random", "ties", "ties", "one expert", "tiny"])
VOCABULARY = 7


@st.composite
def configs(draw, name):
    """A preset at test size, in half of the cases with other rules where they are free."""
    preset = PRESETS[name].options
    two = preset.get("second_expert", "all") != "all"
    groups = preset.get("num_groups", 1) > 1
    selection = preset.get("selection", "top_k")
    if groups:
        num_groups, size = draw(st.integers(1, 3)), draw(st.integers(2, 3))
        num_experts, top_groups = num_groups * size, draw(st.integers(1, num_groups))
        largest = top_groups * size
        options = {"num_groups": num_groups, "top_groups": top_groups}
    else:
        num_experts = draw(st.integers(2 if two else 1, 6))
        largest, options = num_experts, {}
    if selection == "expert_choice" or (preset.get("top_k", 1) == 1 and selection == "top_k"):
        top_k = 1
    else:
        top_k = 2 if two else draw(st.sampled_from([1, min(2, largest), largest]))
    options |= {"num_experts": num_experts, "top_k": top_k}
    if selection == "hash":
        options["vocab_size"] = VOCABULARY
    if draw(st.booleans()):
        options |= {
            "capacity_factor": draw(
                FACTORS if selection == "expert_choice" else FACTORS | st.none()
            ),
            "eval_capacity_factor": draw(FACTORS | st.none()),
            "min_capacity": draw(st.integers(0, 3)),
            "capacity_per": draw(st.sampled_from(["choice", "total"])),
            "capacity_rounding": draw(
                st.sampled_from(["round", "floor", "ceil", "per_choice_ceil"])
            ),
            "capacity_multiple": draw(st.integers(1, 3)),
            "drop_order": draw(st.sampled_from(["token", "choice", "priority", "gate"])),
            "balance_count": draw(st.sampled_from(["all_choices", "first_choice"])),
            "balance_normalisation": draw(st.sampled_from(["one", "k"])),
            "weight_scale": draw(st.sampled_from([1.0, 2.5])),
        }
        if name != "switch":
            options["renormalise"] = draw(st.sampled_from(["never", "before_drop", "after_drop"]))
        if top_k == 2 and selection == "top_k":
            policies = st.sampled_from(["all", "threshold", "random", "sampling"])
            options |= {"second_expert": draw(policies), "eval_second_expert": draw(policies)}
    return RouterConfig(name=name, **options)


def make_logits(kind, tokens, experts, rng):
    """Logits for a kind of trouble."""
    if kind == "random":
        return rng.normal(size=(tokens, experts)).astype(np.float32)
    if kind == "one expert":
        logits = np.zeros((tokens, experts), np.float32)
        logits[:, rng.integers(experts)] = 3
        return logits
    values = {"ties": [-1.0, 0.0, 0.0, 0.5], "tiny": [-60.0, -20.0, 0.0, 2.0]}[kind]
    return rng.choice(np.array(values, np.float32), size=(tokens, experts))


def draws_of(router, tokens, experts):
    """The random numbers that the router is about to draw, and the state from before."""
    state = torch.random.get_rng_state()
    policy = router._second_expert
    uniform = torch.rand(tokens).numpy() if policy == "random" else None
    gumbel = None
    if policy == "sampling":
        gumbel = (-torch.empty(tokens, experts).exponential_().log()).numpy()
    torch.random.set_rng_state(state)
    return {"uniform": uniform, "gumbel": gumbel}


@pytest.mark.parametrize("name", ROUTER_NAMES)
def test_router_equals_oracle(name):
    @settings(max_examples=500, deadline=None, derandomize=True, database=None)
    @given(configs(name), KINDS, st.integers(0, 10), st.booleans(), st.integers(0, 2**31))
    def compare(config, kind, tokens, training, seed):
        check(config, kind, tokens, training, seed)

    compare()


@pytest.mark.parametrize("name", ROUTER_NAMES)
def test_router_equals_oracle_when_everything_is_dropped_and_when_nobody_comes(name):
    preset = PRESETS[name].options
    options = {"num_experts": 6, "capacity_factor": 1e-6, "min_capacity": 0}
    options |= {"top_k": min(preset.get("top_k", 1), 4), "capacity_rounding": "floor"}
    if preset.get("num_groups", 1) > 1:
        options |= {"num_groups": 3, "top_groups": 2}
    if preset.get("selection") == "hash":
        options["vocab_size"] = VOCABULARY
    config = RouterConfig(name=name, **options)
    for tokens in (0, 1, 9):
        routing = check(config, "random", tokens, training=True, seed=0)
        assert routing.num_rows == 0
        check(config, "random", tokens, training=False, seed=0)


def check(config, kind, tokens, training, seed):
    """Route the same tokens with the router and the oracle, and compare all that comes out."""
    rng = np.random.default_rng(seed)
    experts = config.num_experts
    router = build_router(config, experts).train(training)
    if router.weight is None:
        logits = np.zeros((tokens, experts), np.float32)
    else:
        logits = make_logits(kind, tokens, experts, rng)
        with torch.no_grad():
            router.weight.copy_(torch.eye(experts))
    bias = table = None
    if router.selection_bias_E is not None:
        bias = rng.choice(np.array([0.0, 0.0, 0.25, -0.5], np.float32), size=experts)
        router.selection_bias_E.copy_(torch.from_numpy(bias))
    if router.token_expert_VK is not None:
        table = router.token_expert_VK.numpy()
    ids = rng.integers(VOCABULARY, size=tokens)
    torch.manual_seed(seed)
    draws = draws_of(router, tokens, experts)
    routing = router(torch.from_numpy(logits), token_id_T=torch.from_numpy(ids))
    routing.validate()
    expected = routing_oracle.route(
        logits, config, training, bias=bias, table=table, ids=ids, **draws
    )

    load = routing.stats["expert_load_E"].long().tolist()
    owners = [e for e, count in enumerate(load) for _ in range(count)]
    rows = list(zip(owners, routing.row_token_R.tolist(), strict=True))
    assert rows == sorted(expected.rows)
    assert routing.num_rows == len(expected.rows)
    np.testing.assert_allclose(
        routing.row_weight_R.detach().numpy(),
        np.array([expected.rows[row] for row in rows], dtype=np.float64),
        rtol=2e-5,
        atol=1e-30,
    )
    assert routing.stats["choice_count_E"].tolist() == expected.choice_counts
    served = {t for _, t in expected.rows}
    dropped = 1 - len(served) / tokens if tokens else 0
    assert float(routing.stats["dropped_fraction"]) == pytest.approx(dropped, abs=1e-6)
    losses = {key: float(loss.detach()) for key, loss in routing.losses.items()}
    assert losses["balance"] == pytest.approx(expected.balance, rel=2e-5, abs=1e-6)
    assert losses["z"] == pytest.approx(expected.z, rel=1e-5, abs=1e-6)
    return routing
