"""Checks that all ranks make together: how the exchange behaves, not only what comes out."""

from unittest import mock

import pytest
import torch
from parallel_gradient_checks import loss_of
from parallel_world import D_MODEL, error, make_layer, make_shared, reference_of, whole
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.utils.checkpoint import checkpoint

from flan_moe.experts import ExpertWeights
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


def the_shared_expert_runs_while_rows_are_under_way(world):
    """Forward between the launch and the wait of x and weights, and so backward."""
    recorder = Recorder()
    layer = make_layer(5)
    layer.shared = make_shared()
    one = reference_of(layer)
    shard_experts(layer, world.mesh)
    layer.shared.register_forward_hook(lambda *_: recorder.events.append("shared"))
    layer.shared.register_full_backward_hook(lambda *_: recorder.events.append("shared"))
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
    shared = world.mean(layer.shared.wo.grad) * world.ranks
    assert error(shared, one.shared.wo.grad) < 1e-12


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


def what_does_not_fit_is_named_by_shard_experts(world):
    def refused(message, module, mesh=world.mesh, **options):
        with pytest.raises(ValueError, match=message):
            shard_experts(module, mesh, **options)

    axes = init_device_mesh("cpu", (1, world.ranks), mesh_dim_names=("replica", "expert"))
    refused(r"one dimension.*not of 2 .*'replica', 'expert'", make_layer(4), axes)
    refused("loss='max': expected one of 'mean', 'sum'", make_layer(4), loss="max")
    refused("no Experts module in Linear", nn.Linear(2, 2))
    elsewhere = DeviceMesh("cpu", [0])
    if world.rank:
        refused(f"rank {world.rank}, is not in the mesh", make_layer(4), elsewhere)
    on_gpus = mock.Mock(wraps=world.mesh, ndim=1, device_type="cuda")
    refused("experts.wi is on cpu, but the mesh is of 'cuda'", make_layer(4), on_gpus)
    refused("experts: state_names='per_expert'", make_layer(4, state_names="per_expert"))
    reserved = make_layer(4)
    reserved.experts.reserve_gradients(accumulate=True)
    refused("experts: its gradients are reserved", reserved)

    layer = make_layer(4)
    shard_experts(layer, world.mesh)
    refused("experts.wi is a DTensor already", layer)
    with pytest.raises(RuntimeError, match="not for experts that are spread over ranks"):
        layer.experts.reserve_gradients(accumulate=True)


def what_does_not_fit_is_named_by_parallel_expert_ffn(world):
    layer = make_layer(4)
    x_TD = world.tokens()[world.rank]
    routing = layer.router(x_TD)
    share = 4 // world.ranks
    local = ExpertWeights(*(w if w is None else w[:share] for w in layer.experts.weights))
    group = world.mesh.get_group()

    def refused(message, x_TD=x_TD, weights=local, group=group, num_experts=4, **options):
        with pytest.raises(ValueError, match=message):
            parallel_expert_ffn(
                x_TD,
                routing,
                weights,
                group=group,
                num_experts=num_experts,
                activation="geglu",
                **options,
            )

    place = f"rank {world.rank} of {world.ranks} owns {share} of 4 experts, but"
    refused(f"{place} wi_EDH is of 4", weights=layer.experts.weights)
    refused(f"{place} scale_E is of 4", scale_E=torch.ones(4))
    refused("num_experts=6, but the routing is for 4", num_experts=6)
    refused(f"for {len(x_TD)} tokens, x has 99", x_TD=x_TD.new_zeros(99, D_MODEL))
    refused("loss='max'", loss="max")
    first_only = distributed.new_group([0])
    if world.rank:
        refused(f"this process, rank {world.rank}, is not in it", group=first_only)
