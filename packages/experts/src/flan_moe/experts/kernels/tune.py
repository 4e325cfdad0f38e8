"""``python -m flan_moe.experts.kernels.tune``: measure tile sizes on the GPU that is present.

For each workload and kernel, every candidate is checked against torch, those that are right are
timed, and the fastest goes into the table (``configs.json``), which takes the place of the
defaults for exactly that shape and kind of device. Nothing of this happens at run time.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flan_moe.experts.kernels.candidates import candidates
from flan_moe.experts.kernels.config import TileConfig
from flan_moe.experts.kernels.table import DTYPES, Shape, Table, bucket, kernel_of, parse_table
from flan_moe.experts.kernels.workload import Workload, parse_workload

if TYPE_CHECKING:
    from flan_moe.experts.kernels.stages import Stage

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""The largest relative error, in the Euclidean norm, of a configuration that is right."""

Timer = Callable[[Callable[[], object]], float]


def fastest(
    stage: Stage,
    configs: Iterable[TileConfig],
    *,
    timer: Timer,
    tolerance: float,
    say: Callable[[str], None],
) -> TileConfig | None:
    """The configuration that ``timer`` finds fastest among those that run and are right.

    Args:
        stage: a kernel on fixed inputs.
        configs: to try.
        timer: from a function without arguments to seconds.
        tolerance: the largest relative error.
        say: told of each configuration that fails or is wrong, and of each new best.
    """
    best, best_time = None, float("inf")
    for config in configs:
        try:
            result = stage.run(config)
        except Exception as error:  # whatever a compiler or a driver throws at a tile too large
            say(f"  cannot run {config}: {type(error).__name__}")
            continue
        error = _relative_error(result, stage.expected)
        if not error <= tolerance:
            say(f"  WRONG by {error:.1e}: {config}")
            continue
        time = timer(lambda config=config: stage.run(config))
        if time < best_time:
            best, best_time = config, time
            say(f"  {1e3 * time:.3f} ms: {config}")
    return best


def merge(table: Table, winners: Mapping[Shape, TileConfig]) -> tuple[Table, list[str]]:
    """The table with the winners in it, and a line for each entry that is new or not as before."""
    changes = [
        f"{shape}: {table.tuned.get(shape, 'a default')} -> {config}"
        for shape, config in winners.items()
        if table.tuned.get(shape) != config
    ]
    return replace(table, tuned={**table.tuned, **winners}), changes


def write_table(table: Table, path: Path) -> None:
    """Replace the file at once: a reader sees the old table or the new one."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(table.to_json())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def tune_workload(
    work: Workload,
    stages: Mapping[str, Stage],
    *,
    capability: int,
    timer: Timer,
    say: Callable[[str], None],
) -> dict[Shape, TileConfig]:
    """The fastest configuration of each stage; a stage where none is right is left out."""
    winners = {}
    for role, stage in stages.items():
        shape = Shape(
            kernel=kernel_of(role, gated=work.gated),
            dtype=DTYPES[work.dtype],
            weight_bits=8 * work.weight_dtype.itemsize,
            capability=capability,
            width=work.width,
            hidden=work.hidden,
            experts=work.experts,
            rows_per_expert=bucket(work.rows, work.experts),
        )
        say(f"{shape}")
        tried = candidates(
            shape.kernel,
            bits=8 * work.dtype.itemsize,
            capability=capability,
            rows_per_expert=shape.rows_per_expert,
        )
        best = fastest(stage, tried, timer=timer, tolerance=TOLERANCE[work.dtype], say=say)
        if best is not None:
            winners[shape] = best
    return winners


def main(arguments: list[str] | None = None) -> int:
    """The command; 0 if the table was written, 2 without a CUDA device."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--shapes",
        nargs="+",
        required=True,
        metavar="D,F,E,T,K,ACTIVATION,DTYPE[,WEIGHT_DTYPE]",
        help="layers and batches, as 1024,2816,32,32768,2,geglu,bfloat16",
    )
    parser.add_argument("--out", type=Path, required=True, help="the table to add to")
    options = parser.parse_args(arguments)
    workloads = [parse_workload(text) for text in options.shapes]
    table = parse_table(options.out.read_text(encoding="utf-8"))
    if not torch.cuda.is_available():
        print("tuning needs a CUDA device, and there is none", file=sys.stderr)
        return 2
    from triton.testing import do_bench

    from flan_moe.experts.kernels.stages import make_stages

    device = torch.device("cuda", torch.cuda.current_device())
    major, minor = torch.cuda.get_device_capability(device)
    winners: dict[Shape, TileConfig] = {}
    for work in workloads:
        winners |= tune_workload(
            work,
            make_stages(work, device),
            capability=10 * major + minor,
            timer=lambda run: 1e-3 * do_bench(run, return_mode="median"),
            say=print,
        )
    table, changes = merge(table, winners)
    write_table(table, options.out)
    print(f"{options.out}: {len(changes)} changed", *changes, sep="\n  ")
    return 0


def _relative_error(result: Tensor, expected: Tensor) -> float:
    return float((result.float() - expected).norm() / expected.norm())


if __name__ == "__main__":
    sys.exit(main())
