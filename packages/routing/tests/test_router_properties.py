"""Properties of routers: gradients, precision, jitter, replay, no host wait, compilation."""

import pytest
import torch
from small_routers import D_MODEL, make_router, route, rows_of

from flan_moe.routing import PRESETS, ROUTER_NAMES, RouterConfig, build_router

LEARNED = [name for name in ROUTER_NAMES if PRESETS[name].options.get("weights") != "uniform"]


@pytest.mark.parametrize("name", ["switch", "top_k", "expert_choice", "olmoe", "uniform"])
def test_task_gradient_of_raw_gates_equals_the_softmax_jacobian(name):
    router = make_router(name, capacity_factor=0.5)
    x_TD = torch.randn(16, D_MODEL)
    routing = route(router, x_TD)
    grad_R = torch.randn(routing.num_rows)  # dLoss / dWeight of each row
    (routing.row_weight_R * grad_R).sum().backward()

    probs_TE = (x_TD.double() @ router.weight.double().T).softmax(dim=-1).detach()
    grad_TE = torch.zeros_like(probs_TE)
    expert_R = torch.repeat_interleave(routing.expert_offsets.diff())
    grad_TE[routing.row_token_R.long(), expert_R] = grad_R.double()
    inner_T1 = (grad_TE * probs_TE).sum(dim=-1, keepdim=True)
    expected_ED = (probs_TE * (grad_TE - inner_T1)).T @ x_TD.double()
    torch.testing.assert_close(router.weight.grad.double(), expected_ED, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LEARNED)
def test_gradients_in_float64_equal_finite_differences(name):
    """Of weights and losses, with respect to tokens and router weight; the choice is fixed."""
    router = make_router(name, capacity_factor=0.75, min_capacity=1).double()
    x_TD = torch.randn(7, D_MODEL, dtype=torch.float64, requires_grad=True)
    keep = route(router, x_TD)
    assert keep.row_weight_R.dtype == torch.float64
    keep.validate()

    def outcomes(x_TD, weight_ED):
        routing = torch.func.functional_call(Routed(router), {"router.weight": weight_ED}, (x_TD,))
        assert torch.equal(routing.row_token_R, keep.row_token_R), "a step changed the choice"
        return routing.row_weight_R, routing.losses["balance"], routing.losses["z"]

    weight_ED = router.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(outcomes, (x_TD, weight_ED), eps=1e-7, atol=1e-5)


class Routed(torch.nn.Module):
    def __init__(self, router):
        super().__init__()
        self.router = router

    def forward(self, x_TD):
        return route(self.router, x_TD)


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("renormalise", ["never", "before_drop", "after_drop"])
def test_gradients_are_finite_with_extreme_logits(name, renormalise):
    options = {} if name == "switch" else {"renormalise": renormalise}
    router = make_router(name, capacity_factor=0.5, min_capacity=0, **options)
    x_TD = (1e4 * torch.randn(16, D_MODEL)).requires_grad_()  # softmax underflows to 0 and 1
    routing = route(router, x_TD)
    (routing.row_weight_R.sum() + sum(routing.losses.values())).backward()
    assert router.weight.grad.isfinite().all()
    assert x_TD.grad.isfinite().all()


def test_the_router_learns_from_the_task_only_through_rows():
    """Experts that a token did not choose get gradient from the softmax alone."""
    router = make_router("deepseek_v4", bias_update=None, renormalise="never")
    x_TD = torch.randn(1, D_MODEL)
    routing = route(router, x_TD)
    routing.row_weight_R.sum().backward()
    chosen = {e for e, _ in rows_of(routing, 0)}
    touched = {e for e in range(4) if router.weight.grad[e].abs().sum() > 0}
    assert touched == chosen, "sqrt-softplus gates do not depend on the other experts"


@pytest.mark.parametrize("loss", ["balance", "z"])
def test_auxiliary_losses_train_the_router(loss):
    router = make_router("switch", num_experts=4)
    # A shared offset makes one expert win: without it there is little imbalance to train away.
    x_TD = torch.randn(64, D_MODEL) + 1.0
    optimizer = torch.optim.SGD(router.parameters(), lr=0.1)
    first = float(router(x_TD).losses[loss].detach())
    for _ in range(50):
        optimizer.zero_grad()
        value = router(x_TD).losses[loss]
        value.backward()
        optimizer.step()
    assert float(value.detach()) < 0.8 * first


@pytest.mark.parametrize("name", ROUTER_NAMES)
@pytest.mark.parametrize("tokens", [0, 1])
def test_no_tokens_and_one_token(name, tokens):
    router = make_router(name)
    routing = route(router, torch.randn(tokens, D_MODEL))
    routing.validate()
    assert routing.num_tokens == tokens
    if router.weight is not None:
        (routing.row_weight_R.sum() + sum(routing.losses.values())).backward()
        assert router.weight.grad.isfinite().all()
    assert all(stat.isfinite().all() for stat in routing.stats.values())


def test_everything_dropped():
    router = make_router("switch", num_experts=4, capacity_factor=1e-6, min_capacity=0)
    routing = router(torch.randn(9, D_MODEL))
    routing.validate()
    assert routing.num_rows == 0
    assert float(routing.stats["dropped_fraction"]) == 1.0
    assert float(routing.losses["balance"].detach()) > 0  # measured before capacity


@pytest.mark.parametrize("name", ROUTER_NAMES)
def test_loss_and_stat_names_do_not_depend_on_the_router(name):
    routing = route(make_router(name), torch.randn(5, D_MODEL))
    assert set(routing.losses) == {"balance", "z"}
    assert set(routing.stats) == {
        "expert_load_E",
        "dropped_fraction",
        "router_entropy",
        "choice_count_E",
    }


@pytest.mark.parametrize("name", LEARNED)
def test_maths_is_float32_for_bfloat16_tokens_and_under_autocast(name):
    router = make_router(name)
    with torch.no_grad():  # representable in bfloat16, so that casting parameters loses nothing
        router.weight.copy_(router.weight.bfloat16().float())
    x_TD = torch.randn(33, D_MODEL).bfloat16()
    exact = route(router, x_TD.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = route(router, x_TD.float())
    in_bfloat16 = route(router.bfloat16(), x_TD)
    for other in (under_autocast, in_bfloat16):
        other.validate()
        assert torch.equal(other.row_token_R, exact.row_token_R)
        assert torch.equal(other.row_weight_R, exact.row_weight_R)
        assert torch.equal(other.losses["z"], exact.losses["z"])


def test_jitter_is_for_training_and_leaves_the_callers_tensor_alone():
    router = make_router("switch", jitter=0.5, capacity_factor=None)
    x_TD = torch.randn(64, D_MODEL)
    original_TD = x_TD.clone()
    noisy = router(x_TD)
    assert torch.equal(x_TD, original_TD)
    assert not torch.equal(noisy.losses["z"], router(x_TD).losses["z"])
    quiet = router.eval()(x_TD)
    assert torch.equal(quiet.losses["z"], router(x_TD).losses["z"])


@pytest.mark.parametrize("name", ROUTER_NAMES)
def test_routing_is_bitwise_repeatable(name):
    router = make_router(name)
    x_TD = torch.randn(100, D_MODEL)
    first, second = route(router, x_TD), route(router, x_TD)
    assert torch.equal(first.row_token_R, second.row_token_R)
    assert torch.equal(first.row_weight_R, second.row_weight_R)


def test_weight_is_initialised_as_in_flaxformer():
    torch.manual_seed(0)
    router = build_router(RouterConfig(num_experts=64), 512)
    assert float(router.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
    assert float(router.weight.detach().mean()) == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "sqrt_softplus", "top_k_softmax"])
def test_the_second_expert_takes_part_by_its_share_of_the_two_weights(score):
    """Whatever the score: the scores of top_k_softmax are logits, whose shares mean nothing."""
    options = {"score": score, "renormalise": "before_drop", "capacity_factor": None}
    x_TD = torch.randn(50, D_MODEL)
    both = make_router("top_k", **options)(x_TD)
    large = [min(weight for _, weight in rows_of(both, token)) > 0.3 for token in range(50)]
    some = make_router("top_k", **options, second_expert="threshold", second_threshold=0.3)(x_TD)
    assert [rows > 1 for rows in some.token_offsets.diff().tolist()] == large
    assert 0 < sum(large) < 50
