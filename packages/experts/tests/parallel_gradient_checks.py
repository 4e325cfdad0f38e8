"""Checks that all ranks make together: numbers are those of one process with all experts.

Each rank has a loss of its own tokens, with coefficients of its own.
"""

import torch
from parallel_world import TOKENS, error, make_layer, make_shared, reference_of, whole
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from flan_moe.experts import ExpertWeights
from flan_moe.experts.parallel import (
    clip_gradients,
    owned_experts,
    parallel_expert_ffn,
    shard_experts,
)


def loss_of(y_TD, rank):
    generator = torch.Generator().manual_seed(rank)
    factor_TD = torch.randn(y_TD.shape, generator=generator, dtype=torch.float64)
    return (y_TD * factor_TD.to(y_TD.device)).sum()


def compare(world, layer, *, tolerance=1e-12, loss="mean", tokens=None, **forward):
    """Outputs and all gradients of a layer, sharded, with those of one process; returns y, x."""
    layer = layer.to(world.device)
    one = reference_of(layer)
    names = shard_experts(layer, world.mesh, loss=loss)
    assert names == [f"experts.{name}" for name, _ in one.experts.named_parameters()]

    own = (tokens or world.tokens())[world.rank]
    y_TD, routing = layer(own, **{key: value[world.rank] for key, value in forward.items()})
    loss_of(y_TD, world.rank).backward()

    others = tokens or world.tokens()
    losses = []
    for rank, x_TD in enumerate(others):
        expected_TD, _ = one(x_TD, **{key: value[rank] for key, value in forward.items()})
        losses.append(loss_of(expected_TD, rank))
        if rank == world.rank:
            assert error(y_TD, expected_TD) < tolerance
    total = sum(losses)
    x_grads = torch.autograd.grad(total, others, retain_graph=True, allow_unused=True)
    if x_grads[world.rank] is not None:
        assert error(own.grad, x_grads[world.rank]) < tolerance
    (total / world.ranks).backward()
    for name, parameter in one.router.named_parameters():
        mine = world.mean(layer.router.get_parameter(name).grad)
        assert error(mine, parameter.grad) < tolerance, name
    scale = world.ranks if loss == "sum" else 1
    for name, parameter in one.experts.named_parameters():
        found = whole(layer.experts.get_parameter(name))
        assert error(found, parameter.grad * scale) < tolerance, name
    return y_TD, routing


def every_share_of_experts_gives_the_numbers_of_one_process(world):
    """Even shares, a last rank with fewer, ranks without any; a rank has no tokens."""
    for num_experts in (8, 7, 5, 3, 1):
        for backend in ("grouped", "reference"):
            compare(world, make_layer(num_experts, backend=backend))


def biases_scales_and_activations_are_covered(world):
    for activation in ("relu", "gelu", "swiglu"):
        layer = make_layer(5, activation=activation, bias=True, output_scale=True)
        assert sum(1 for _ in layer.experts.parameters()) == 5
        compare(world, layer)


def tokens_without_rows_get_exact_zero(world):
    y_TD, routing = compare(world, make_layer(5, capacity_factor=0.3))
    idle_T = routing.token_offsets.diff() == 0
    assert bool(idle_T.any()) == bool(TOKENS[world.rank]), "this needs dropped tokens"
    assert bool((y_TD[idle_T] == 0).all())


def an_expert_without_rows_has_a_gradient_of_zero(world):
    """Experts 1 and 4 get everything: the ranks of the others receive nothing."""
    forced = [torch.tensor([[1, 4]]).expand(count, 2) for count in TOKENS]
    layer = make_layer(5)
    compare(world, layer, forced_experts=forced)
    for idle in (0, 2, 3):
        assert not whole(layer.experts.wi)[idle].any()


def a_summed_loss_is_not_divided(world):
    compare(world, make_layer(5), loss="sum")


def gradients_accumulate_over_microbatches(world):
    layer = make_layer(5)
    one = reference_of(layer)
    shard_experts(layer, world.mesh)
    for seed in (0, 1):
        tokens = world.tokens(seed)
        loss_of(layer(tokens[world.rank])[0], world.rank).backward()
        total = sum(loss_of(one(x_TD)[0], rank) for rank, x_TD in enumerate(tokens))
        (total / world.ranks).backward()
    for name, parameter in one.experts.named_parameters():
        assert error(whole(layer.experts.get_parameter(name)), parameter.grad) < 1e-12, name


def float32_differs_by_rounding_only(world):
    layer = make_layer(5, dtype=torch.float32)
    tokens = [x_TD.detach().float().requires_grad_() for x_TD in world.tokens()]
    compare(world, layer, tokens=tokens, tolerance=2e-6)


def the_functional_form_takes_local_weights(world):
    layer = make_layer(5)
    x_TD = world.tokens()[world.rank]
    routing = layer.router(x_TD)
    owned = owned_experts(5, world.ranks, world.rank)
    local = ExpertWeights(
        *(w if w is None else w[owned.start : owned.stop] for w in layer.experts.weights)
    )
    y_TD = parallel_expert_ffn(
        x_TD,
        routing,
        local,
        group=world.mesh.get_group(),
        num_experts=5,
        activation=layer.experts.activation,
    )
    assert error(y_TD, reference_of(layer)(x_TD)[0]) < 1e-12


def what_is_frozen_gets_no_gradient_and_the_rest_the_same(world):
    for frozen in ("x", "router", "experts", "x and router"):
        layer = make_layer(5)
        one = reference_of(layer)
        for each in (layer, one):
            each.router.requires_grad_("router" not in frozen)
            each.experts.requires_grad_("experts" not in frozen)
        shard_experts(layer, world.mesh)
        tokens = [x_TD.detach().requires_grad_("x" not in frozen) for x_TD in world.tokens()]
        twins = [x_TD.detach().clone().requires_grad_(x_TD.requires_grad) for x_TD in tokens]
        y_TD, _ = layer(tokens[world.rank])
        loss_of(y_TD, world.rank).backward()
        (
            sum(loss_of(one(x_TD)[0], rank) for rank, x_TD in enumerate(twins)) / world.ranks
        ).backward()
        if "x" in frozen:
            assert tokens[world.rank].grad is None
        else:
            assert error(tokens[world.rank].grad, twins[world.rank].grad * world.ranks) < 1e-12
        if "router" in frozen:
            assert layer.router.weight.grad is None
        else:
            assert error(world.mean(layer.router.weight.grad), one.router.weight.grad) < 1e-12
        if "experts" in frozen:
            assert layer.experts.wi.grad is None
        else:
            assert error(whole(layer.experts.wi), one.experts.wi.grad) < 1e-12


def five_steps_under_ddp_are_those_of_one_process(world):
    layer = make_layer(5)
    one = reference_of(layer)
    layer._ddp_params_and_buffers_to_ignore = shard_experts(layer, world.mesh)
    ddp = DistributedDataParallel(layer)
    optimizers = [
        torch.optim.SGD(each.parameters(), lr=0.02, momentum=0.9) for each in (layer, one)
    ]
    for step in range(5):
        for optimizer in optimizers:
            optimizer.zero_grad()
        tokens = world.tokens(seed=step)
        loss = ddp(tokens[world.rank])[0].square().sum() / 4
        loss.backward()
        expected = one(torch.cat(tokens))[0].square().sum() / 4 / world.ranks
        expected.backward()
        assert error(world.mean(loss), expected) < 1e-10, f"loss of step {step}"
        for optimizer in optimizers:
            optimizer.step()
    start = make_layer(5)
    for name, parameter in one.named_parameters():
        found = layer.get_parameter(name)
        found = found.full_tensor() if name.startswith("experts") else found
        assert error(found, parameter) < 1e-10, name
        assert error(parameter, start.get_parameter(name)) > 1e-3, f"{name} was not trained"


def fsdp_shards_replicas_of_the_experts_further(world):
    """A mesh of two axes: experts over one, FSDP over the other, over both for the rest."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "expert"))
    layer = make_layer(4)
    layer.shared = make_shared()
    one = reference_of(layer)
    shard_experts(layer, mesh["expert"])
    fully_shard(layer.experts, mesh=mesh["replica"])
    fully_shard(layer, mesh=mesh["replica", "expert"]._flatten("data"))
    tokens = world.tokens()
    loss_of(layer(tokens[world.rank])[0], world.rank).backward()
    (sum(loss_of(one(x_TD)[0], rank) for rank, x_TD in enumerate(tokens)) / 4).backward()
    for name, parameter in one.named_parameters():
        assert error(whole(layer.get_parameter(name)), parameter.grad) < 1e-12, name


def clipping_sees_the_gradients_of_all_ranks(world):
    for max_norm, clipped in ((0.5, True), (1e9, False)):
        layer = make_layer(5)
        one = reference_of(layer)
        shard_experts(layer, world.mesh)
        tokens = world.tokens()
        loss_of(layer(tokens[world.rank])[0], world.rank).backward()
        layer.router.weight.grad = world.mean(layer.router.weight.grad)
        mean = sum(loss_of(one(x_TD)[0], rank) for rank, x_TD in enumerate(tokens)) / world.ranks
        mean.backward()
        expected = torch.nn.utils.clip_grad_norm_(one.parameters(), max_norm)
        assert (float(expected) > max_norm) == clipped
        assert error(clip_gradients(layer.parameters(), max_norm), expected) < 1e-12
        assert error(whole(layer.experts.wo), one.experts.wo.grad) < 1e-12
        assert error(layer.router.weight.grad, one.router.weight.grad) < 1e-12
