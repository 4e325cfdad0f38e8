"""`shard_experts`: a model's experts over the axis of a device mesh.

Shape suffixes: T tokens, D model width, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from flan_moe.experts.layer import Experts
from flan_moe.experts.parallel.ffn import check_loss, start_expert_ffn
from flan_moe.experts.parallel.plan import owned_experts
from flan_moe.experts.weights import ExpertWeights
from flan_moe.routing import Routing


@dataclass(frozen=True, kw_only=True)
class ExpertParallel:
    """How an `Experts` module runs once `shard_experts` has been over it.

    Attributes:
        mesh: one axis; the ranks that share the experts.
        loss: see `parallel_expert_ffn`.
    """

    mesh: DeviceMesh
    loss: str

    def start(self, experts: Experts, x_TD: Tensor, routing: Routing) -> Callable[[], Tensor]:
        """See `start_expert_ffn`."""
        return start_expert_ffn(
            x_TD,
            routing,
            ExpertWeights(*map(_local, experts.weights)),
            scale_E=_local(experts.scale),
            group=self.mesh.get_group(),
            num_experts=experts.num_experts,
            loss=self.loss,
            activation=experts.activation,
            dropout=experts.dropout,
            training=experts.training,
            backend=experts.backend,
        )


def shard_experts(module: nn.Module, mesh: DeviceMesh, *, loss: str = "mean") -> list[str]:
    """Spread every `Experts` inside over the ranks of a mesh axis, in place.

    ::

        mesh = init_device_mesh("cuda", (ranks,), mesh_dim_names=("expert",))
        sharded = shard_experts(model, mesh["expert"])  # before DDP, FSDP, optimizer and Trainer
        model._ddp_params_and_buffers_to_ignore = sharded  # where DDP is to wrap ``model``

    Each parameter becomes a DTensor with ``Shard(0)``: each rank keeps its slice of what it had,
    and no more, without communication. So the ranks should have started from the same values, as
    they have after seeding alike or loading a checkpoint; a module on the meta device stays there,
    to be materialised in its shards. E need not be divisible by the number of ranks, nor be as
    large. State dicts hold the DTensors: ``torch.distributed.checkpoint`` saves them once and
    loads them over another number of ranks, or into a module that is not sharded.

    From then on all ranks of the axis must run the module, forward and backward, equally often,
    each with its own tokens, any number of them. For the gradients see `parallel_expert_ffn`:
    those of the experts include all tokens of the axis and must not be averaged over it again
    (leave them to neither DDP nor an FSDP over this axis); averaging over another axis, of ranks
    with the same experts, remains to be done.

    Args:
        module: an `Experts`, or any module with some inside.
        mesh: of one dimension, this process in it.
        loss: ``"mean"`` if the loss that all ranks minimise is the mean of each one's own, as
            under DDP and FSDP; ``"sum"`` if it is their sum.

    Returns:
        The names of the sharded parameters, as in ``module.named_parameters()``, and of one that
        several `Experts` share, all of its names.

    Raises:
        ValueError: if the mesh has several dimensions, is of another kind of device than the
            parameters, or does not include this process; if there are no experts; if their
            parameters are DTensors already; if they have reserved gradients or per-expert names.
    """
    check_loss(loss)
    _check_mesh(mesh)
    found = {name: m for name, m in module.named_modules() if isinstance(m, Experts)}
    if not found:
        raise ValueError(f"there is no Experts module in {type(module).__name__}")
    for prefix, experts in found.items():
        _check_options(prefix, experts)
    parameters = {
        (prefix, name): parameter
        for prefix, experts in found.items()
        for name, parameter in experts.named_parameters(recurse=False)
    }
    for (prefix, name), parameter in parameters.items():
        _check_parameter(_join(prefix, name), parameter, mesh)
    sharded: dict[nn.Parameter, nn.Parameter] = {}  # layers may share one
    for (prefix, name), parameter in parameters.items():
        if parameter not in sharded:
            sharded[parameter] = _shard(parameter, mesh)
        setattr(found[prefix], name, sharded[parameter])
    for experts in found.values():
        experts.parallel = ExpertParallel(mesh=mesh, loss=loss)
    return [_join(prefix, name) for prefix, name in parameters]


def _local(parameter: DTensor | None) -> Tensor | None:
    return None if parameter is None else parameter.to_local()


def _shard(parameter: nn.Parameter, mesh: DeviceMesh) -> nn.Parameter:
    owned = owned_experts(parameter.shape[0], mesh.size(), mesh.get_local_rank())
    local = parameter.detach()[owned.start : owned.stop].clone()  # frees the rest
    sharded = DTensor.from_local(
        local, mesh, [Shard(0)], shape=parameter.shape, stride=parameter.stride()
    )
    return nn.Parameter(sharded, requires_grad=parameter.requires_grad)


def _check_mesh(mesh: DeviceMesh) -> None:
    if mesh.ndim != 1:
        raise ValueError(
            f"expected a mesh of one dimension, such as mesh['expert'], not of {mesh.ndim} "
            f"(names {mesh.mesh_dim_names})"
        )
    if mesh.get_coordinate() is None:
        raise ValueError(
            f"this process, rank {torch.distributed.get_rank()}, is not in the mesh "
            f"{mesh.mesh.tolist()}"
        )


def _check_options(name: str, experts: Experts) -> None:
    if experts.has_reserved_gradients:
        raise ValueError(f"{name or 'module'}: its gradients are reserved (reserve_gradients)")
    if experts.state_names != "stacked":
        raise ValueError(
            f"{name or 'module'}: state_names={experts.state_names!r}: what is sharded is "
            f"'stacked'; name the experts after gathering, see flan_moe.experts.names"
        )


def _check_parameter(name: str, parameter: nn.Parameter, mesh: DeviceMesh) -> None:
    if isinstance(parameter, DTensor):
        raise ValueError(
            f"{name} is a DTensor already, {parameter.placements} over {parameter.device_mesh}: "
            f"shard experts once, and before FSDP"
        )
    if parameter.device.type not in (mesh.device_type, "meta"):
        raise ValueError(
            f"{name} is on {parameter.device}, but the mesh is of {mesh.device_type!r} devices"
        )


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
