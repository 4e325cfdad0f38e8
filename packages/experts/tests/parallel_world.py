"""Run as a program: several ranks, which make the checks of `parallel_checks` in order.

``python parallel_world.py RANKS FOLDER DEVICE`` writes, of each rank,
``FOLDER/rank<RANK>of<RANKS>_<DEVICE>.json``: the names of the checks made, with null or a
traceback. The first failure ends the rank, because the others may now wait for it. Ranks are forks
of a process that has imported everything: imports take longer than all checks.
"""

import copy
import json
import multiprocessing
import sys
import time
import traceback
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from flan_moe.experts import Experts, SharedExperts, SparseFeedForward
from flan_moe.routing import RouterConfig, build_router

D_MODEL, D_FF = 6, 10
TOKENS = (5, 0, 7, 3)
"""Of each rank."""

SECONDS = 180
"""After that, ranks that still run are ended."""


@dataclass(frozen=True)
class World:
    rank: int
    ranks: int
    mesh: DeviceMesh
    folder: Path
    device: str

    def tokens(self, seed=0, dtype=torch.float64):
        """The tokens of every rank, leaves of autograd."""
        torch.manual_seed(100 + seed)
        chunks = torch.randn(sum(TOKENS[: self.ranks]), D_MODEL, dtype=dtype).split(
            TOKENS[: self.ranks]
        )
        return [chunk.to(self.device).clone().requires_grad_() for chunk in chunks]

    def mean(self, tensor):
        """Over the ranks, as DDP does it to the gradients of replicated parameters."""
        tensor = tensor.detach().clone()
        distributed.all_reduce(tensor)
        return tensor / self.ranks


def make_layer(num_experts, *, capacity_factor=None, dtype=torch.float64, seed=0, **options):
    """The same on every rank: top-2, a decided router, O(1) weights and biases."""
    torch.manual_seed(seed)
    config = RouterConfig(
        name="top_k",
        num_experts=num_experts,
        top_k=min(2, num_experts),
        capacity_factor=capacity_factor,
        min_capacity=0,
    )
    layer = SparseFeedForward(
        build_router(config, D_MODEL), Experts(num_experts, D_MODEL, D_FF, **options)
    )
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer.to(dtype)


def make_shared():
    """An always-on expert, the same on every rank."""
    torch.manual_seed(7)
    return SharedExperts(D_MODEL, D_FF).double()


def reference_of(layer):
    """The same layer with all experts at home, by the specification."""
    layer = copy.deepcopy(layer)
    layer.experts.backend = "reference"
    return layer


def error(found, expected):
    """Relative error in norm; where zero is expected, the norm."""
    found, expected = found.detach().double(), expected.detach().double()
    assert found.shape == expected.shape, f"{tuple(found.shape)}, not {tuple(expected.shape)}"
    norm = float(expected.norm())
    return float((found - expected).norm()) / (norm if norm else 1.0)


def whole(parameter):
    """The gradient of a sharded parameter, of all ranks."""
    return parameter.grad.full_tensor()


def run_rank(rank, ranks, folder, device, checks):
    torch.set_num_threads(1)
    if device == "cuda":
        torch.cuda.set_device(rank)
    distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=f"file://{folder / f'rendezvous_{device}{ranks}'}",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=60),
    )
    mesh = init_device_mesh(device, (ranks,), mesh_dim_names=("expert",))
    world = World(rank, ranks, mesh["expert"], folder, device)
    outcomes = {}
    for check in checks:
        try:
            check(world)
        except Exception:
            outcomes[check.__name__] = traceback.format_exc()
            break
        outcomes[check.__name__] = None
    (folder / f"rank{rank}of{ranks}_{device}.json").write_text(json.dumps(outcomes))
    if not any(outcomes.values()):
        distributed.barrier()
        distributed.destroy_process_group()  # its threads must not outlive the interpreter


def main(ranks, folder, device):
    from parallel_checks import CHECKS

    fork = multiprocessing.get_context("fork")
    processes = [
        fork.Process(target=run_rank, args=(rank, ranks, folder, device, CHECKS[device, ranks]))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    end = time.monotonic() + SECONDS
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    for rank, process in enumerate(processes):
        if process.exitcode != 0:
            print(f"rank {rank}:", process.exitcode or f"ended after {SECONDS} seconds")
            process.kill()
            process.join()
    return int(any(process.exitcode for process in processes))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
