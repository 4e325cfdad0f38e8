"""Checks that all ranks make together: state dicts, saved by four ranks, loaded by two and one."""

import copy

import torch
from parallel_gradient_checks import loss_of
from parallel_world import error, make_layer, whole
from torch import distributed
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.tensor import DTensor

from flan_moe.experts.parallel import shard_experts

SIZES = (8, 5, 3)


def optimizer_of(layer):
    return torch.optim.AdamW(layer.parameters(), lr=0.01, weight_decay=0.1)


def state_of(layer, optimizer):
    model, optimizer = get_state_dict(layer, optimizer)
    return {"model": model, "optimizer": optimizer}


def trained(world, num_experts):
    """A sharded layer and its optimizer after two steps, the router as DDP would train it."""
    layer = make_layer(num_experts, dtype=torch.float32)
    shard_experts(layer, world.mesh)
    optimizer = optimizer_of(layer)
    for step in range(2):
        optimizer.zero_grad()
        x_TD = world.tokens(seed=step)[world.rank].detach().float()
        loss_of(layer(x_TD)[0], world.rank).backward()
        for parameter in layer.router.parameters():
            parameter.grad = world.mean(parameter.grad)
        optimizer.step()
    return layer, optimizer


def flat(state, prefix=""):
    """Every tensor of a nested state dict, whole, by its path."""
    found = {}
    for key, value in state.items():
        path = f"{prefix}/{key}"
        if isinstance(value, dict):
            found |= flat(value, path)
        elif isinstance(value, torch.Tensor):
            found[path] = value.full_tensor() if isinstance(value, DTensor) else value
    return found


def save(state, folder):
    checkpoint.save(state, checkpoint_id=folder)


def four_ranks_save_one_checkpoint(world):
    for num_experts in SIZES:
        layer, optimizer = trained(world, num_experts)
        state = state_of(layer, optimizer)
        assert all(isinstance(state["model"][f"experts.{name}"], DTensor) for name in ("wi", "wo"))
        save(state, world.folder / f"checkpoint{num_experts}")
        whole = flat(state)
        if world.rank == 0:
            torch.save(whole, world.folder / f"whole{num_experts}.pt")


def a_full_state_dict_gathers_the_experts(world):
    layer = make_layer(5)
    expected = {name: value.clone() for name, value in layer.state_dict().items()}
    shard_experts(layer, world.mesh)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    found = get_model_state_dict(layer, options=options)
    if world.rank == 0:
        assert set(found) == set(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def two_ranks_load_what_four_saved(world):
    for num_experts in SIZES:
        layer = make_layer(num_experts, dtype=torch.float32, seed=1)
        shard_experts(layer, world.mesh)
        optimizer = optimizer_of(layer)
        state = state_of(layer, optimizer)
        checkpoint.load(state, checkpoint_id=world.folder / f"checkpoint{num_experts}")
        set_state_dict(
            layer, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
        )
        expected = torch.load(world.folder / f"whole{num_experts}.pt")
        found = flat(state_of(layer, optimizer))
        assert set(found) == set(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def a_layer_on_the_meta_device_is_made_in_shards(world):
    layer = make_layer(5, dtype=torch.float32).to("meta")
    shard_experts(layer, world.mesh)
    assert layer.experts.wi.is_meta
    layer.to_empty(device="cpu")
    rows = -(-5 // world.ranks)
    assert layer.experts.wi.to_local().shape[0] <= rows
    state = {"model": layer.state_dict()}
    checkpoint.load(state, checkpoint_id=world.folder / "checkpoint5")
    expected = torch.load(world.folder / "whole5.pt")
    assert torch.equal(layer.experts.wi.full_tensor(), expected["/model/experts.wi"])
    distributed.barrier()


def weights_that_layers_share_stay_shared(world):
    layers = torch.nn.ModuleList([make_layer(4), make_layer(4, seed=1)])
    layers[1].experts.wi = layers[0].experts.wi
    x_TD = world.tokens()[world.rank].detach()
    wi = copy.deepcopy(layers)[0].experts.wi
    names = shard_experts(layers, world.mesh)
    assert names == ["0.experts.wi", "0.experts.wo", "1.experts.wi", "1.experts.wo"], names
    assert layers[0].experts.wi is layers[1].experts.wi
    assert torch.equal(layers[0].experts.wi.full_tensor(), wi)
    shares = []
    for layer in layers:
        layers.zero_grad()
        layer(x_TD)[0].square().sum().backward()
        shares.append(whole(layer.experts.wi).clone())
    layers.zero_grad()
    sum(layer(x_TD)[0].square().sum() for layer in layers).backward()
    assert error(whole(layers[1].experts.wi), shares[0] + shares[1]) < 1e-12
