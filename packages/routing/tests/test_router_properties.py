"""Properties of routers: causality, gradients, precision, jitter, replay, no host wait."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from flan_moe.routing import ROUTER_NAMES, RouterConfig, build_router, build_routing

D_MODEL = 6


def make_router(name="top_k", seed=0, **options):
    torch.manual_seed(seed)
    options.setdefault("num_experts", 4)
    if name == "top_k":
        options.setdefault("top_k", 2)
    router = build_router(RouterConfig(name=name, **options), D_MODEL)
    torch.nn.init.normal_(router.weight)  # at its own 0.02 the router is close to undecided
    return router


def rows_of(routing, token):
    """(expert, weight) of each row of a token."""
    start, end = routing.token_offsets[token : token + 2].tolist()
    rows = routing.token_row_R[start:end]
    experts = torch.searchsorted(routing.expert_offsets, rows, right=True) - 1
    return list(zip(experts.tolist(), routing.row_weight_R[rows.long()].tolist(), strict=True))


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["switch", "top_k"]),
    dropless=st.booleans(),
    seed=st.integers(0, 10_000),
    changed=st.integers(1, 11),
)
def test_token_choice_does_not_look_at_later_tokens(name, dropless, seed, changed):
    # Top-1 is causal even when capacity binds. With more choices a second choice queues behind
    # all first choices, so that top-k is causal only where capacity does not bind.
    factor = None if dropless or name == "top_k" else 0.5
    router = make_router(name, seed, capacity_factor=factor, min_capacity=0)
    x_TD = torch.randn(12, D_MODEL)
    other_TD = x_TD.clone()
    other_TD[changed:] = torch.randn(12 - changed, D_MODEL)
    before, after = router(x_TD), router(other_TD)
    for token in range(changed):
        assert rows_of(before, token) == rows_of(after, token)


def test_expert_choice_does_look_at_later_tokens():
    router = make_router("expert_choice", capacity_factor=1.0, min_capacity=1)
    assert not router.is_causal
    x_TD = torch.randn(8, D_MODEL)
    before = [rows_of(router(x_TD), 0)]
    for _ in range(20):
        x_TD[1:] = torch.randn(7, D_MODEL)
        before.append(rows_of(router(x_TD), 0))
    assert len({str(rows) for rows in before}) > 1


def test_evaluation_is_dropless_so_that_a_token_does_not_see_its_batch():
    router = make_router("top_k", capacity_factor=0.5).eval()
    x_TD = torch.randn(32, D_MODEL)
    routing = router(x_TD)
    assert float(routing.stats["dropped_fraction"]) == 0.0
    for token in (0, 17, 31):
        alone = router(x_TD[token : token + 1])
        assert [e for e, _ in rows_of(alone, 0)] == [e for e, _ in rows_of(routing, token)]


@pytest.mark.parametrize("name", ROUTER_NAMES)
def test_task_gradient_equals_the_softmax_jacobian(name):
    router = make_router(name, capacity_factor=0.5)
    x_TD = torch.randn(16, D_MODEL)
    routing = router(x_TD)
    grad_R = torch.randn(routing.num_rows)  # dLoss / dWeight of each row
    (routing.row_weight_R * grad_R).sum().backward()

    probs_TE = (x_TD.double() @ router.weight.double().T).softmax(dim=-1).detach()
    grad_TE = torch.zeros_like(probs_TE)
    expert_R = torch.repeat_interleave(routing.expert_offsets.diff())
    grad_TE[routing.row_token_R.long(), expert_R] = grad_R.double()
    inner_T1 = (grad_TE * probs_TE).sum(dim=-1, keepdim=True)
    expected_ED = (probs_TE * (grad_TE - inner_T1)).T @ x_TD.double()
    torch.testing.assert_close(router.weight.grad.double(), expected_ED, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "normalize"),
    [
        ("switch", False),
        ("top_k", False),
        ("top_k", True),
        ("expert_choice", False),
        ("expert_choice", True),
    ],
)
def test_gradients_are_finite_with_extreme_logits(name, normalize):
    router = make_router(name, normalize_weights=normalize, capacity_factor=0.5, min_capacity=0)
    x_TD = (1e4 * torch.randn(16, D_MODEL)).requires_grad_()  # softmax underflows to 0 and 1
    routing = router(x_TD)
    (routing.row_weight_R.sum() + sum(routing.losses.values())).backward()
    assert router.weight.grad.isfinite().all()
    assert x_TD.grad.isfinite().all()


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
    routing = router(torch.randn(tokens, D_MODEL))
    routing.validate()
    assert routing.num_tokens == tokens
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
    routing = make_router(name)(torch.randn(5, D_MODEL))
    assert set(routing.losses) == {"balance", "z"}
    assert set(routing.stats) == {"expert_load_E", "dropped_fraction", "router_entropy"}


@pytest.mark.parametrize("name", ROUTER_NAMES)
def test_maths_is_float32_for_bfloat16_tokens_and_under_autocast(name):
    router = make_router(name)
    with torch.no_grad():  # representable in bfloat16, so that casting parameters loses nothing
        router.weight.copy_(router.weight.bfloat16().float())
    x_TD = torch.randn(33, D_MODEL).bfloat16()
    exact = router(x_TD.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = router(x_TD.float())
    in_bfloat16 = router.bfloat16()(x_TD)
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


def replayable(routing, k):
    """The (T, k) experts of a routing, -1 where a token had fewer."""
    expert_TK = torch.full((routing.num_tokens, k), -1, dtype=torch.int32)
    for token in range(routing.num_tokens):
        for choice, (expert, _) in enumerate(rows_of(routing, token)):
            expert_TK[token, choice] = expert
    return expert_TK


@pytest.mark.parametrize("name", ROUTER_NAMES)
def test_replay_gives_back_rows_weights_and_gradients(name):
    router = make_router(name, capacity_factor=0.5, min_capacity=0)
    x_TD = torch.randn(24, D_MODEL)
    original = router(x_TD)
    grad_R = torch.randn(original.num_rows)
    (original.row_weight_R * grad_R).sum().backward()
    expected_grad = router.weight.grad.clone()

    router.zero_grad()
    replay = router(x_TD, forced_experts=replayable(original, 4))
    replay.validate()
    for field in ("row_token_R", "row_weight_R", "expert_offsets", "token_row_R", "token_offsets"):
        assert torch.equal(getattr(replay, field), getattr(original, field))
    (replay.row_weight_R * grad_R).sum().backward()
    torch.testing.assert_close(router.weight.grad, expected_grad)


def test_forced_experts_have_the_weights_of_the_live_logits():
    router = make_router("top_k", normalize_weights=True)
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
        ({"forced_experts": torch.zeros(5)}, r"forced_experts has shape \(5,\)"),
        ({"forced_experts": torch.zeros(5, 1)}, "forced_experts is torch.float32"),
        ({"forced_experts": torch.full((5, 1), 4)}, "names expert 4; there are 4"),
        ({"forced_experts": torch.tensor([[0, 1]] * 4 + [[2, 2]])}, "twice for token 4"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_router("top_k")(torch.randn(5, D_MODEL), **kwargs)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_tokens_that_are_no_floats_are_refused(dtype):
    with pytest.raises(ValueError, match=f"router input is {dtype}; expected a floating dtype"):
        make_router("top_k")(torch.ones(5, D_MODEL, dtype=dtype))


def test_tokens_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 5, 6\); expected \(tokens, 6\)"):
        make_router("top_k")(torch.randn(2, 5, D_MODEL))


@pytest.mark.parametrize("name", ROUTER_NAMES)
def test_routing_is_bitwise_repeatable(name):
    router = make_router(name)
    x_TD = torch.randn(100, D_MODEL)
    first, second = router(x_TD), router(x_TD)
    assert torch.equal(first.row_token_R, second.row_token_R)
    assert torch.equal(first.row_weight_R, second.row_weight_R)


class HostReads(TorchDispatchMode):
    """Records the operations whose result or shape the host must read off the data."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waits = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
        if waits & set(func.tags):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ROUTER_NAMES)
def test_the_host_reads_one_number_which_is_the_trimming_on_cpu(name):
    router = make_router(name)
    with HostReads() as reads:
        router(torch.randn(32, D_MODEL))
    assert reads.names == ["aten._local_scalar_dense.default"]


def test_untrimmed_building_reads_nothing():
    with HostReads() as reads:
        build_routing(
            token_N=torch.tensor([0, 1, 1]),
            expert_N=torch.tensor([1, 0, 1]),
            weight_N=torch.ones(3),
            keep_N=torch.tensor([True, True, False]),
            num_tokens=2,
            num_experts=2,
            losses={},
            stats={},
            trim=False,
        )
    assert reads.names == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ROUTER_NAMES)
def test_cuda_equals_cpu_without_waiting_for_the_device(name):
    router = make_router(name, capacity_factor=0.5)
    x_TD = torch.randn(64, D_MODEL)
    on_cpu = router(x_TD)
    router, x_TD = router.cuda(), x_TD.cuda()
    forced_TK = torch.zeros(64, 1, dtype=torch.int64, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_cuda = router(x_TD)
        router(x_TD, forced_experts=forced_TK)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    on_cuda.validate()
    rows = on_cpu.num_rows
    assert torch.equal(on_cuda.expert_offsets.cpu(), on_cpu.expert_offsets)
    assert torch.equal(on_cuda.row_token_R[:rows].cpu(), on_cpu.row_token_R)
    assert torch.equal(on_cuda.token_row_R[:rows].cpu(), on_cpu.token_row_R)
    torch.testing.assert_close(on_cuda.row_weight_R[:rows].cpu(), on_cpu.row_weight_R)


def test_weight_is_initialised_as_in_flaxformer():
    torch.manual_seed(0)
    router = build_router(RouterConfig(num_experts=64), 512)
    assert float(router.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
    assert float(router.weight.detach().mean()) == pytest.approx(0.0, abs=1e-3)
