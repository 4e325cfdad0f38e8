"""Inputs that do not fit a router are refused by name; forced experts replace the choice."""

import pytest
import torch
from small_routers import D_MODEL, make_router, route, rows_of

from flan_moe.routing import PRESETS, ROUTER_NAMES, RouterConfig, build_router

LEARNED = [name for name in ROUTER_NAMES if PRESETS[name].options.get("weights") != "uniform"]


def replayable(routing, k):
    """The (T, k) experts of a routing, -1 where a token had fewer."""
    expert_TK = torch.full((routing.num_tokens, k), -1, dtype=torch.int32)
    for token in range(routing.num_tokens):
        for choice, (expert, _) in enumerate(rows_of(routing, token)):
            expert_TK[token, choice] = expert
    return expert_TK


@pytest.mark.parametrize("name", LEARNED)
def test_replay_gives_back_rows_weights_and_gradients(name):
    # Gates that are renormalised before dropping remember what was dropped; a replay cannot.
    drops = {"capacity_factor": 0.5, "min_capacity": 0}
    if RouterConfig(name=name).renormalise == "before_drop" or name == "gpt_oss":
        drops = {"capacity_factor": None, "second_expert": "all"}
    router = make_router(name, **drops)
    x_TD = torch.randn(24, D_MODEL)
    original = route(router, x_TD)
    grad_R = torch.randn(original.num_rows)
    (original.row_weight_R * grad_R).sum().backward()
    expected_grad = router.weight.grad.clone()

    router.zero_grad()
    replay = route(router, x_TD, forced_experts=replayable(original, 4))
    replay.validate()
    for field in ("row_token_R", "expert_offsets", "token_row_R", "token_offsets"):
        assert torch.equal(getattr(replay, field), getattr(original, field))
    torch.testing.assert_close(replay.row_weight_R, original.row_weight_R)
    (replay.row_weight_R * grad_R).sum().backward()
    torch.testing.assert_close(router.weight.grad, expected_grad)


def test_forced_experts_have_the_weights_of_the_live_logits():
    router = make_router("top_k", renormalise="before_drop")
    x_TD = torch.randn(3, D_MODEL)
    probs_TE = (x_TD @ router.weight.detach().T).softmax(dim=-1)
    routing = router(x_TD, forced_experts=torch.tensor([[3, 0], [1, -1], [-1, -1]]))
    share = (probs_TE[0, 3] / (probs_TE[0, 0] + probs_TE[0, 3])).item()
    assert rows_of(routing, 0) == [(0, pytest.approx(1 - share)), (3, pytest.approx(share))]
    assert rows_of(routing, 1) == [(1, pytest.approx(1.0))]
    assert rows_of(routing, 2) == []


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"sequence_T": torch.zeros(4)}, r"sequence_T has shape \(4,\); expected \(5,\)"),
        ({"forced_experts": [[0]] * 5}, "forced_experts is of type list; expected a tensor"),
        ({"token_id_T": [0] * 5}, "token_id_T is of type list; expected a tensor"),
        ({"forced_experts": torch.zeros(5)}, r"forced_experts has shape \(5,\)"),
        ({"forced_experts": torch.zeros(5, 0).long()}, r"has shape \(5, 0\); .* at least one"),
        ({"forced_experts": torch.zeros(5, 1)}, "forced_experts is torch.float32"),
        ({"forced_experts": torch.full((5, 1), 4)}, "names expert 4; there are 4"),
        ({"forced_experts": torch.tensor([[0, 1]] * 4 + [[2, 2]])}, "twice for token 4"),
        ({"token_id_T": torch.zeros(4)}, r"token_id_T has shape \(4,\); expected \(5,\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_router("top_k")(torch.randn(5, D_MODEL), **kwargs)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("hash", {}, "token_id_T is None; hash routing needs the token ids"),
        ("hash", {"token_id_T": torch.full((5,), 11)}, "token_id_T holds 11..11; .* below vocab"),
        ("hash", {"token_id_T": torch.full((5,), -1)}, "token_id_T holds -1..-1"),
        ("hash", {"token_id_T": torch.zeros(5)}, "token_id_T is torch.float32"),
        ("deepseek_v3", {"sequence_T": torch.full((5,), 5)}, "sequence_T holds 5..5; .*, 5"),
        ("deepseek_v3", {"sequence_T": torch.zeros(5)}, "sequence_T is torch.float32"),
    ],
)
def test_ids_that_do_not_fit_are_refused(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_router(name)(torch.randn(5, D_MODEL), **kwargs)


def test_hash_routing_needs_to_know_the_vocabulary():
    with pytest.raises(ValueError, match="vocab_size=None: expected a number for hash routing"):
        build_router(RouterConfig(name="hash"), D_MODEL)


def test_logits_that_are_not_finite_are_refused_on_request():
    x_TD = torch.randn(5, D_MODEL)
    x_TD[3, 0] = float("nan")
    with pytest.raises(ValueError, match=r"logits of token 3 are not finite: \[nan, .*\(1 such"):
        make_router("top_k", check_finite=True)(x_TD)
    make_router("top_k", check_finite=True)(x_TD[:3])


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_tokens_that_are_no_numbers_are_refused(dtype):
    with pytest.raises(ValueError, match=f"router input is {dtype}; expected a floating dtype"):
        make_router("top_k")(torch.zeros(5, D_MODEL, dtype=dtype))


def test_tokens_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 5, 6\); expected \(tokens, 6\)"):
        make_router("top_k")(torch.randn(2, 5, D_MODEL))


@pytest.mark.parametrize("x_TD", [None, [[0.0] * D_MODEL], torch.zeros(5, D_MODEL).numpy()])
def test_tokens_that_are_no_tensor_are_refused(x_TD):
    with pytest.raises(ValueError, match=r"router input is of type \w+; expected a tensor"):
        make_router("top_k")(x_TD)


@pytest.mark.parametrize("d_model", [0, -1, 8.0, "8", True])
def test_a_width_that_is_none_is_refused(d_model):
    with pytest.raises(ValueError, match=f"d_model={d_model!r}: expected an integer"):
        build_router(RouterConfig(), d_model)


@pytest.mark.parametrize("config", ["top_k", {"name": "top_k"}, None])
def test_a_router_is_built_from_a_config(config):
    with pytest.raises(TypeError, match=r"build_router: config=.*: expected a RouterConfig"):
        build_router(config, D_MODEL)
