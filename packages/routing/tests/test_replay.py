"""Recording and replaying routings: the same experts, live weights, one entry per call."""

import os
import stat

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from flan_moe.routing import RouterConfig, build_router
from flan_moe.routing.metrics import chosen_experts
from flan_moe.routing.replay import Recording, record_routing, replay_routing

D_MODEL, E = 6, 4
NAMES = ("switch", "top_k", "expert_choice")


class Layer(nn.Module):
    """A residual sparse layer whose experts only scale; everything of a router is visible."""

    def __init__(self, name="top_k", **options):
        super().__init__()
        options.setdefault("num_experts", E)
        if name == "top_k":
            options.setdefault("top_k", 2)
        self.router = build_router(RouterConfig(name=name, **options), D_MODEL)
        nn.init.normal_(self.router.weight)
        self.scale_E = nn.Parameter(torch.randn(options["num_experts"]))
        self.chosen = []  # what worked on the tokens, in every call, repeated ones too

    def forward(self, x_TD):
        routing = self.router(x_TD, forced_experts=None)
        self.chosen.append(chosen_experts(routing))
        token_R = routing.row_token_R.long()
        expert_R = self.scale_E.repeat_interleave(routing.expert_offsets.diff().long())
        update_RD = (x_TD[token_R] * (expert_R * routing.row_weight_R)[:, None]).to(x_TD)
        return x_TD + torch.zeros_like(x_TD).index_add(0, token_R, update_RD).tanh()


class Model(nn.Module):
    """Layers in a row; ``reentrant`` None runs without activation checkpointing."""

    def __init__(self, *layers, reentrant=None):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.reentrant = reentrant

    def forward(self, x_TD):
        for layer in self.layers:
            if self.reentrant is None:
                x_TD = layer(x_TD)
            else:
                x_TD = checkpoint(layer, x_TD, use_reentrant=self.reentrant)
        return x_TD


def make_model(name="top_k", layers=2, seed=0, reentrant=None, **options):
    torch.manual_seed(seed)
    return Model(*(Layer(name, **options) for _ in range(layers)), reentrant=reentrant)


def batch(seed=1, num_tokens=20):
    return torch.randn(num_tokens, D_MODEL, generator=torch.Generator().manual_seed(seed))


def run(model, x_TD):
    """Output, and the gradient of the input and of every parameter."""
    x_TD = x_TD.clone().requires_grad_()
    y_TD = model(x_TD)
    parameters = [x_TD, *model.parameters()]
    gradients = torch.autograd.grad(y_TD.square().sum(), parameters)
    return [y_TD, *gradients]


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


CASES = [
    ("switch", {"capacity_factor": 0.7, "min_capacity": 1}),
    ("top_k", {"capacity_factor": 0.9, "min_capacity": 1}),
    (
        "top_k",
        {"top_k": 3, "num_experts": 7, "renormalise": "before_drop", "capacity_factor": None},
    ),
    ("expert_choice", {"capacity_factor": 1.0, "min_capacity": 1}),
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_replay_is_the_recorded_pass_to_the_last_bit(name, options):
    model, x_TD = make_model(name, **options), batch()
    with record_routing(model) as recording:
        recorded = run(model, x_TD)
    with replay_routing(model, recording):
        assert same(run(model, x_TD), recorded)
    assert len(model.layers[0].router._forward_hooks) == 0
    assert len(model.layers[0].router._forward_pre_hooks) == 0


def test_renormalised_expert_choice_replays_up_to_rounding():
    # Expert choice normalises over a row of E, forced experts over a row of K: other sums.
    model = make_model("expert_choice", capacity_factor=2.0, renormalise="before_drop")
    with record_routing(model) as recording:
        recorded = run(model, batch())
    with replay_routing(model, recording):
        torch.testing.assert_close(run(model, batch()), recorded)


@pytest.mark.parametrize("name", NAMES)
def test_another_model_uses_the_recorded_experts_with_its_own_weights(name):
    model, other, x_TD = make_model(name), make_model(name, seed=5), batch()
    with record_routing(model) as recording:
        model(x_TD)
    free = run(other, x_TD)
    other.layers[0].chosen.clear()
    with replay_routing(other, recording):
        forced = run(other, x_TD)
    assert torch.equal(other.layers[0].chosen[0], model.layers[0].chosen[0])
    assert not torch.equal(forced[0], free[0])
    assert all(gradient.abs().sum() > 0 for gradient in forced[1:])


def test_calls_are_recorded_in_order_by_module_name():
    model = make_model()
    with record_routing(model) as recording:
        model(batch(1))
        model(batch(2, num_tokens=5))
    assert list(recording.calls) == ["layers.0.router", "layers.1.router"]
    assert recording.num_experts == {"layers.0.router": E, "layers.1.router": E}
    assert [tuple(call.shape) for call in recording.calls["layers.1.router"]] == [(20, 2), (5, 2)]
    for recorded, chosen in zip(
        recording.calls["layers.0.router"], model.layers[0].chosen, strict=True
    ):
        assert torch.equal(*(t.sort(descending=True).values for t in (recorded, chosen)))


def test_choices_pads_calls_of_different_width():
    a, b = torch.tensor([[1], [0]]), torch.tensor([[2, 0, 1]])
    recording = Recording(num_experts={"r": 3, "s": 3}, calls={"r": [a, b], "s": []})
    assert recording.choices("r").tolist() == [[1, -1, -1], [0, -1, -1], [2, 0, 1]]
    assert recording.choices("s").shape == (0, 1)


def test_no_tokens_and_tokens_without_experts():
    model = make_model("top_k", capacity_factor=0.01, min_capacity=0)
    with record_routing(model) as recording:
        model(batch(num_tokens=0))
        recorded = run(model, batch())
    assert (recording.calls["layers.0.router"][1] == -1).all()
    with replay_routing(model, recording):
        model(batch(num_tokens=0))
        assert same(run(model, batch()), recorded)


class TestRefusals:
    def recorded(self, **options):
        model = make_model(**options)
        with record_routing(model) as recording:
            model(batch())
        return model, recording

    def test_no_router(self):
        for manager in (
            record_routing(nn.ReLU()),
            replay_routing(nn.ReLU(), Recording(num_experts={})),
        ):
            with pytest.raises(ValueError, match="no Router inside this ReLU"), manager:
                pass

    def test_a_router_that_was_not_recorded(self):
        _, recording = self.recorded(layers=1)
        with (
            pytest.raises(ValueError, match=r"no router 'layers.1.router'; it has 'layers.0"),
            replay_routing(make_model(layers=2), recording),
        ):
            pass

    def test_another_number_of_experts(self):
        _, recording = self.recorded()
        with (
            pytest.raises(ValueError, match=r"recorded with 4 experts, the model has 5"),
            replay_routing(make_model(num_experts=5), recording),
        ):
            pass

    def test_too_few_calls(self):
        model, recording = self.recorded()
        with replay_routing(model, recording):
            model(batch())
            with pytest.raises(ValueError, match=r"call 1 of router 'layers.0.router'.*has 1"):
                model(batch())

    def test_looping_starts_again_but_not_with_nothing(self):
        model, recording = self.recorded()
        with replay_routing(model, recording, loop=True):
            first, second = run(model, batch()), run(model, batch())
        assert same(first, second)
        empty = Recording(
            num_experts=recording.num_experts, calls={name: [] for name in recording.calls}
        )
        with (
            replay_routing(model, empty, loop=True),
            pytest.raises(ValueError, match="has 0"),
        ):
            model(batch())

    def test_another_number_of_tokens(self):
        model, recording = self.recorded()
        with (
            replay_routing(model, recording),
            pytest.raises(ValueError, match="with 20 tokens and is replayed with 19"),
        ):
            model(batch()[:19])

    def test_experts_that_are_forced_already(self):
        model, recording = self.recorded()
        forced_TK = torch.zeros(20, 1, dtype=torch.int64)
        with (
            replay_routing(model, recording),
            pytest.raises(ValueError, match="forced_experts during a replay"),
        ):
            model.layers[0].router(batch(), forced_experts=forced_TK)

    @pytest.mark.parametrize("manager", ["record", "replay"])
    def test_hooks_go_when_the_block_raises(self, manager):
        model, recording = self.recorded()
        context = record_routing(model) if manager == "record" else replay_routing(model, recording)
        with pytest.raises(RuntimeError, match="boom"), context:
            raise RuntimeError("boom")
        router = model.layers[0].router
        assert not router._forward_hooks
        assert not router._forward_pre_hooks


@pytest.mark.parametrize("reentrant", [False, True])
class TestActivationCheckpointing:
    """Backward runs the forward pass of each layer again."""

    def test_is_recorded_once(self, reentrant):
        model = make_model(reentrant=reentrant)
        with record_routing(model) as recording:
            run_backward(model, batch())
        assert len(model.layers[0].chosen) == 2  # the test does run a repetition
        assert [len(calls) for calls in recording.calls.values()] == [1, 1]

    @pytest.mark.parametrize("name", NAMES)
    def test_repeats_the_entry_of_the_call(self, reentrant, name):
        model, x_TD = make_model(name), batch()
        with record_routing(model) as recording:
            expected = run_backward(model, x_TD)
        model.reentrant = reentrant
        with replay_routing(model, recording):
            assert same(run_backward(model, x_TD), expected)

    def test_does_not_move_on_between_accumulated_batches(self, reentrant):
        batches = [batch(seed) for seed in range(3)]
        model, other = make_model(seed=3), make_model(seed=4)
        with record_routing(model) as recording:
            for x_TD in batches:
                model(x_TD)
        with replay_routing(other, recording):
            expected = [run_backward(other, x_TD) for x_TD in batches]
        other.reentrant = reentrant
        with replay_routing(other, recording):
            got = [run_backward(other, x_TD) for x_TD in batches]
        assert all(same(a, b) for a, b in zip(got, expected, strict=True))

    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
    def test_finds_the_call_when_backward_passes_come_in_any_order(self, reentrant, order):
        model, other = make_model(seed=3), make_model(seed=4, reentrant=reentrant)
        batches = [batch(seed).requires_grad_() for seed in range(3)]
        with record_routing(model) as recording:
            for x_TD in batches:
                model(x_TD)
        layer = other.layers[0]
        with replay_routing(other, recording):
            losses = [other(x_TD).square().sum() for x_TD in batches]
            first = list(layer.chosen)
            layer.chosen.clear()
            for index in order:
                losses[index].backward()
        assert len(layer.chosen) == 3
        for index, repeated in zip(order, layer.chosen, strict=True):
            assert torch.equal(repeated, first[index])

    def test_finds_the_call_of_a_router_that_is_used_twice_in_one_pass(self, reentrant):
        torch.manual_seed(0)
        shared = Layer()
        model = Model(shared, shared)
        with record_routing(model) as recording:
            expected = run_backward(model, batch())
        assert [len(calls) for calls in recording.calls.values()] == [2]
        model.reentrant = reentrant
        with replay_routing(model, recording):
            assert same(run_backward(model, batch()), expected)

    def test_refuses_a_repetition_of_nothing_that_was_replayed(self, reentrant):
        model = make_model(reentrant=reentrant)
        with record_routing(model) as recording:
            loss = model(batch().requires_grad_()).sum()
        with (
            replay_routing(model, recording),
            pytest.raises(ValueError, match="none of its last 0 replayed calls"),
        ):
            loss.backward()


def run_backward(model, x_TD):
    """As `run`, through backward(): reentrant checkpointing knows no torch.autograd.grad."""
    x_TD = x_TD.clone().requires_grad_()
    model.zero_grad()
    y_TD = model(x_TD)
    y_TD.square().sum().backward()
    return [y_TD.detach(), x_TD.grad, *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_order_of_tokens_identifies_a_repeated_call(dtype):
    # Two calls that differ in nothing but the order of their tokens.
    x_TD = batch().to(dtype)
    calls = [x_TD.requires_grad_(), x_TD.detach().flip(0).requires_grad_()]
    model, other = make_model(layers=1, seed=3), make_model(layers=1, seed=4, reentrant=False)
    with record_routing(model) as recording:
        for call_TD in calls:
            model(call_TD)
    with replay_routing(other, recording):
        losses = [other(call_TD).square().sum() for call_TD in calls]
        first = list(other.layers[0].chosen)
        losses[0].backward()
    assert torch.equal(other.layers[0].chosen[-1], first[0])
    assert not torch.equal(first[0], first[1])


class TestFiles:
    def recording(self):
        model = make_model("expert_choice")
        with record_routing(model) as recording:
            model(batch(1))
            model(batch(2, num_tokens=7))
        return model, recording

    def test_round_trip(self, tmp_path):
        model, recording = self.recording()
        path = tmp_path / "routing.pt"
        recording.save(path)
        recording.save(path)  # in place of the old one
        loaded = Recording.load(path)
        assert loaded.num_experts == recording.num_experts
        assert list(loaded.calls) == list(recording.calls)
        for name, calls in recording.calls.items():
            for a, b in zip(loaded.calls[name], calls, strict=True):
                assert torch.equal(a.long(), b)
        with replay_routing(model, loaded):
            model(batch(1))
        assert os.listdir(tmp_path) == ["routing.pt"]

    def test_a_failed_save_leaves_the_old_file_and_nothing_else(self, tmp_path, monkeypatch):
        _, recording = self.recording()
        path = tmp_path / "routing.pt"
        recording.save(path)
        before = path.read_bytes()

        def full_disk(_content, partial):
            partial.write_bytes(b"half")
            raise OSError("no space left")

        monkeypatch.setattr(torch, "save", full_disk)
        with pytest.raises(OSError, match="no space"):
            recording.save(path)
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["routing.pt"]

    def test_a_saved_file_is_as_readable_as_any_other(self, tmp_path):
        _, recording = self.recording()
        recording.save(tmp_path / "routing.pt")
        (tmp_path / "other").touch()
        modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        assert len(modes) == 1

    def test_damaged_and_foreign_files_are_refused_by_name(self, tmp_path):
        _, recording = self.recording()
        whole = tmp_path / "routing.pt"
        recording.save(whole)
        data = whole.read_bytes()
        cut, text, foreign, code = (tmp_path / name for name in ("cut", "text", "foreign", "code"))
        cut.write_bytes(data[: len(data) // 2])
        text.write_text("not a recording")
        torch.save({"weight": torch.zeros(3)}, foreign)
        torch.save(recording, code)  # a pickled object: refused without running it
        for path in (cut, text, foreign, code):
            with pytest.raises(ValueError, match=rf"{path.name} is .*not a recording"):
                Recording.load(path)
        with pytest.raises(FileNotFoundError):
            Recording.load(tmp_path / "absent")

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("calls", {"r": [torch.tensor([[4]])]}),
            ("calls", {"r": [torch.tensor([4])]}),
            ("calls", {"r": [torch.tensor([[0.5]])]}),
            ("calls", {"other": []}),
            ("calls", None),
            ("num_experts", {"r": "many"}),
        ],
    )
    def test_impossible_contents_are_refused(self, tmp_path, key, value):
        path = tmp_path / "routing.pt"
        good = {"num_experts": {"r": 4}, "calls": {"r": [torch.tensor([[3, -1]])]}}
        torch.save({"format": "flan-moe-routing recording 1", **good}, path)
        Recording.load(path)
        torch.save({"format": "flan-moe-routing recording 1", **good, key: value}, path)
        with pytest.raises(ValueError, match=r"routing.pt is a damaged recording"):
            Recording.load(path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_on_cuda_neither_recording_nor_replaying_waits_for_the_device(name):
    router = make_model(name).layers[0].router.cuda()
    x_TD = batch().cuda()
    with record_routing(router) as recording:
        torch.cuda.set_sync_debug_mode("error")
        try:
            routing = router(x_TD)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    with replay_routing(router, recording):
        torch.cuda.set_sync_debug_mode("error")
        try:
            again = router(x_TD)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    rows = int(routing.expert_offsets[-1])
    assert torch.equal(again.expert_offsets, routing.expert_offsets)
    assert torch.equal(again.row_weight_R[:rows], routing.row_weight_R[:rows])


@pytest.mark.parametrize("recording", ["recording.pt", {}, None])
def test_what_is_no_recording_is_not_replayed(recording):
    with (
        pytest.raises(TypeError, match="replay_routing: expected a Recording, got"),
        replay_routing(Layer(), recording),
    ):
        pass
