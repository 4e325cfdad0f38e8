"""Checks that all ranks make together: how the exchange behaves, not only what comes out."""

from unittest import mock

import pytest
import torch
from parallel_gradient_checks import loss_of
from parallel_world import D_MODEL, error, make_layer, reference_of, whole
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.utils.checkpoint import checkpoint

from flan_moe.experts.parallel import parallel_expert_ffn, shard_experts


class Recorder:
    """Logs row exchanges (not those of counts, which are waited for at once)."""

    def __init__(self):
        self.events, self.dtypes = [], []
        self.all_to_all_single = distributed.all_to_all_single

    def __call__(self, output, tensor, *splits, async_op=False, **options):
        work = self.all_to_all_single(output, tensor, *splits, async_op=async_op, **options)
        if not async_op:
            return work
        self.events.append("launch")
        self.dtypes.append(tensor.dtype)
        recorded = mock.Mock(wraps=work)
        recorded.wait.side_effect = lambda: self.events.append("wait") or work.wait()
        return recorded

    def patch(self):
        return mock.patch.object(distributed, "all_to_all_single", self)


class Shared(nn.Linear):
    """An always-on expert that logs when its forward and its backward pass run."""

    def __init__(self, events):
        super().__init__(D_MODEL, D_MODEL, dtype=torch.float64)
        self.events = events

    def forward(self, x_TD):
        self.events.append("shared")
        y_TD = super().forward(x_TD)
        y_TD.register_hook(lambda _: self.events.append("shared"))
        return y_TD


def the_shared_expert_runs_while_rows_are_under_way(world):
    """Forward between the launch and the wait of x and weights, and so backward."""
    recorder = Recorder()
    layer = make_layer(5)
    torch.manual_seed(1)
    layer.shared = Shared(recorder.events)
    one = reference_of(layer)
    one.shared.events = []
    shard_experts(layer, world.mesh)
    x_TD = world.tokens()[world.rank]
    with recorder.patch():
        y_TD, _ = layer(x_TD)
        out, home = ["launch", "launch"], ["launch", "wait"]
        assert recorder.events == [*out, "shared", "wait", "wait", *home]
        recorder.events.clear()
        loss_of(y_TD, world.rank).backward()
        assert recorder.events == [*home, *out, "shared", "wait", "wait"]
    twin = world.tokens()
    (sum(loss_of(one(each)[0], rank) for rank, each in enumerate(twin))).backward()
    assert error(x_TD.grad, twin[world.rank].grad) < 1e-12
    assert error(whole(layer.experts.wi) * world.ranks, one.experts.wi.grad) < 1e-12
    shared = world.mean(layer.shared.weight.grad) * world.ranks
    assert error(shared, one.shared.weight.grad) < 1e-12


def dropout_is_reproducible(world):
    layer = make_layer(5, dropout=0.5)
    shard_experts(layer, world.mesh)
    x_TD = world.tokens()[world.rank]

    def run(seed):
        torch.manual_seed(seed)
        layer.zero_grad()
        y_TD, _ = layer(x_TD)
        loss_of(y_TD, world.rank).backward()
        return y_TD.detach(), whole(layer.experts.wi)

    y_TD, gradient = run(1)
    again_TD, gradient_again = run(1)
    assert torch.equal(y_TD, again_TD)
    assert torch.equal(gradient, gradient_again)
    assert gradient.isfinite().all()
    other_TD, gradient_other = run(2)
    assert not torch.equal(gradient, gradient_other)
    layer.eval()
    assert error(layer(x_TD)[0], reference_of_eval(layer, world, x_TD)) < 1e-12
    assert len(x_TD) == 0 or not torch.equal(y_TD, other_TD)


def reference_of_eval(layer, world, x_TD):
    return reference_of(make_layer(5)).eval()(x_TD)[0]


def activation_checkpointing_repeats_the_exchange(world):
    """With dropout, on ranks with and without experts and tokens."""
    gradients = []
    for use in (False, True):
        layer = make_layer(5, dropout=0.5)
        shard_experts(layer, world.mesh)
        x_TD = world.tokens()[world.rank]
        torch.manual_seed(3 + world.rank)
        run = lambda each: layer(each)[0]  # noqa: E731, B023
        y_TD = checkpoint(run, x_TD, use_reentrant=False) if use else run(x_TD)
        loss_of(y_TD, world.rank).backward()
        gradients.append((x_TD.grad, layer.router.weight.grad, whole(layer.experts.wo)))
    for plain, repeated in zip(*gradients, strict=True):
        assert torch.equal(plain, repeated)


def under_autocast_rows_travel_in_its_dtype(world):
    recorder = Recorder()
    layer = make_layer(5, dtype=torch.float32)
    one = reference_of(layer)
    shard_experts(layer, world.mesh)
    tokens = [x_TD.detach().float().requires_grad_() for x_TD in world.tokens()]
    with recorder.patch():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y_TD, _ = layer(tokens[world.rank])
        assert y_TD.dtype == torch.float32
        loss_of(y_TD, world.rank).backward()
    rows, weights = torch.bfloat16, torch.float32
    assert recorder.dtypes == [rows, weights, rows, rows, rows, weights]
    twins = [x_TD.detach().clone().requires_grad_() for x_TD in tokens]
    sum(loss_of(one(x_TD)[0], rank) for rank, x_TD in enumerate(twins)).backward()
    assert error(tokens[world.rank].grad, twins[world.rank].grad) < 0.02
    assert error(whole(layer.experts.wi) * world.ranks, one.experts.wi.grad) < 0.02


def evaluation_keeps_nothing(world):
    layer = make_layer(5).eval()
    one = reference_of(layer)
    shard_experts(layer, world.mesh)
    x_TD = world.tokens()[world.rank]
    with torch.no_grad():
        y_TD, _ = layer(x_TD)
    assert not y_TD.requires_grad
    assert error(y_TD, one(x_TD)[0]) < 1e-12


def what_does_not_fit_is_named(world):
    def refused(message, function, *arguments, **options):
        with pytest.raises(ValueError, match=message):
            function(*arguments, **options)

    axes = init_device_mesh("cpu", (1, world.ranks), mesh_dim_names=("replica", "expert"))
    refused(r"one dimension.*not of 2 .*'replica', 'expert'", shard_experts, make_layer(4), axes)
    refused(
        "loss='max': expected one of 'mean', 'sum'",
        shard_experts,
        make_layer(4),
        world.mesh,
        loss="max",
    )
    refused("no Experts module in Linear", shard_experts, nn.Linear(2, 2), world.mesh)
    elsewhere = DeviceMesh("cpu", [0])
    if world.rank:
        refused(f"rank {world.rank}, is not in the mesh", shard_experts, make_layer(4), elsewhere)
    other_device = mock.Mock(wraps=world.mesh, ndim=1, device_type="cuda")
    refused(
        "experts.wi is on cpu, but the mesh is of 'cuda'",
        shard_experts,
        make_layer(4),
        other_device,
    )

    layer = make_layer(4)
    shard_experts(layer, world.mesh)
    refused(r"experts.wi is a DTensor already", shard_experts, layer, world.mesh)
    x_TD = world.tokens()[world.rank]
    refused(
        r"tokens, x has",
        layer.experts,
        x_TD[:0].repeat(9, 1).new_zeros(99, D_MODEL),
        layer.router(x_TD),
    )

    whole_layer = make_layer(4)
    routing = whole_layer.router(x_TD)
    group = world.mesh.get_group()
    options = {"group": group, "activation": whole_layer.experts.activation}
    weights = whole_layer.experts.weights
    share = 4 // world.ranks
    refused(
        f"rank {world.rank} of {world.ranks} owns {share} of 4 experts, but wi_EDH is of 4",
        parallel_expert_ffn,
        x_TD,
        routing,
        weights,
        num_experts=4,
        **options,
    )
    refused(
        "num_experts=6, but the routing is for 4",
        parallel_expert_ffn,
        x_TD,
        routing,
        weights,
        num_experts=6,
        **options,
    )
    options["group"] = distributed.new_group([0])
    if world.rank:
        refused(
            "is not in it", parallel_expert_ffn, x_TD, routing, weights, num_experts=4, **options
        )
