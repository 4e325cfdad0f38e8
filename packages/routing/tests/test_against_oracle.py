"""Every router against a slow oracle that routes one token at a time in plain Python."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_moe.routing import Router, RouterConfig


def oracle(probs, config, training):
    """The kept (expert, token) -> weight of one group of tokens, by the rules as written."""
    num_tokens, num_experts = probs.shape
    factor = config.capacity_factor if training else config.eval_capacity_factor
    if factor is None and config.name == "expert_choice":
        factor = config.capacity_factor
    capacity = num_tokens
    if factor is not None:
        rounded = round(factor * num_tokens / num_experts)
        capacity = min(num_tokens, max(config.min_capacity, rounded))

    if config.name == "expert_choice":
        chosen = {
            (e, t)
            for e in range(num_experts)
            for t in sorted(range(num_tokens), key=lambda t: (-probs[t, e], t))[:capacity]
        }
        kept = chosen
    else:
        ranked = [
            sorted(range(num_experts), key=lambda e: (-probs[t, e], e))[: config.top_k]
            for t in range(num_tokens)
        ]
        chosen = {(e, t) for t, experts in enumerate(ranked) for e in experts}
        kept = set()
        for choice in range(config.top_k):
            for t in range(num_tokens):
                expert = ranked[t][choice]
                if sum(1 for e, _ in kept if e == expert) < capacity:
                    kept.add((expert, t))

    def weight(e, t):
        if not config.normalize_weights:
            return probs[t, e]
        return probs[t, e] / sum(probs[t, other] for other, token in chosen if token == t)

    return {pair: weight(*pair) for pair in kept}, chosen


@st.composite
def cases(draw):
    name = draw(st.sampled_from(["switch", "top_k", "expert_choice"]))
    num_experts = draw(st.integers(1, 5))
    top_k = draw(st.integers(1, num_experts)) if name == "top_k" else 1
    factors = st.sampled_from([0.1, 0.5, 1.0, 1.25, 4.0])
    config = RouterConfig(
        name=name,
        num_experts=num_experts,
        top_k=top_k,
        capacity_factor=draw(factors if name == "expert_choice" else factors | st.none()),
        eval_capacity_factor=draw(factors | st.none()),
        min_capacity=draw(st.integers(0, 4)),
        normalize_weights=name != "switch" and draw(st.booleans()),
    )
    # Few distinct logits, so that ties are common; -60 makes some probabilities tiny.
    logit = st.sampled_from([-60.0, -1.0, 0.0, 0.0, 0.5, 2.0])
    num_tokens = draw(st.integers(0, 11))
    shape = (num_tokens, num_experts)
    logits = draw(st.lists(logit, min_size=num_tokens * num_experts, max_size=shape[0] * shape[1]))
    return config, torch.tensor(logits).reshape(shape), draw(st.booleans())


@settings(max_examples=400, deadline=None)
@given(cases())
def test_router_equals_oracle(case):
    config, logits_TE, training = case
    router = Router(config, d_model=config.num_experts).train(training)
    with torch.no_grad():
        router.weight.copy_(torch.eye(config.num_experts))
    routing = router(logits_TE)
    routing.validate()

    probs = logits_TE.softmax(dim=-1).numpy()  # float32, as the ties are decided on these
    expected, chosen = oracle(probs, config, training)

    load = routing.stats["expert_load_E"].long().tolist()
    experts = [e for e, count in enumerate(load) for _ in range(count)]
    rows = list(zip(experts, routing.row_token_R.tolist(), strict=True))
    assert rows == sorted(expected)
    assert routing.num_rows == len(expected)
    np.testing.assert_allclose(
        routing.row_weight_R.detach().numpy(),
        np.array([expected[row] for row in rows], dtype=np.float32),
        rtol=1e-5,
        atol=1e-30,
    )

    num_tokens = logits_TE.shape[0]
    served = {t for _, t in expected}
    dropped = 1 - len(served) / num_tokens if num_tokens else 0
    assert float(routing.stats["dropped_fraction"]) == pytest.approx(dropped, abs=1e-6)
    if config.name == "expert_choice" or num_tokens == 0:
        balance = 0.0
    else:
        fraction = [sum(1 for e, _ in chosen if e == i) / num_tokens for i in range(len(load))]
        balance = len(load) * float(np.dot(fraction, probs.mean(axis=0, dtype=np.float64)))
    assert float(routing.losses["balance"].detach()) == pytest.approx(balance, rel=1e-5, abs=1e-7)
    logits = logits_TE.double().numpy()
    lse = np.log(np.exp(logits).sum(axis=-1))
    z = float((lse**2).mean()) if num_tokens else 0.0
    assert float(routing.losses["z"].detach()) == pytest.approx(z, rel=1e-5, abs=1e-7)
