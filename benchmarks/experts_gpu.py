"""Expert layers on one GPU: ours against other people's and against dense layers of equal FLOPs.

Sides, on the same weights, tokens and choices, timed in turn in one process:

- ``triton``, ``grouped``: `flan_moe.experts`, from the choices as the peers; ``triton, routing
  given``: the rows sorted before, as our routers do.
- ``cublas``: the bare matrix products of the same number of rows through one expert, the rate
  that shares are of; ``dense``: a dense feed-forward layer of that size under autograd.
- ``grouped_mm`` (torch >= 2.9), ``scattermoe``, ``liger``, ``megablocks``, ``sonicmoe``: where
  they are installed or, for the two with an option, given as a check-out.

Every layer is first compared with a float64 computation on fresh random inputs of order one.
Peers that have only SwiGLU are measured, with ours, on the same sizes with SwiGLU. TFLOP/s are of
the matrix products (`flan_moe.experts.accounting.flops`); ``of ceiling`` compares both passes
with `accounting.roofline` at the cublas rate and copy bandwidth of the same run. ``saved``: bytes
that autograd keeps, parameters apart; ``held``: bytes allocated from forward to backward, output
apart; ``peak``: above what was allocated before, both passes.

Run ``python benchmarks experts_gpu [--shapes NAME ...] [--json PATH]``. ``--interpret`` runs the
same code on tiny shapes on the CPU, in Triton's interpreter, and claims no times.
"""

import argparse
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from flan_moe.experts.accounting import flops, roofline
from measure import Passes, PassSeconds, alternate_passes, print_table, write_json
from peers.case import Case, Problem, make_problem
from peers.dense import dense_layer, matmuls
from peers.device import copy_bandwidth, memory_of, sm_clock
from peers.grouped_mm import GroupedMM
from peers.interpreter import ensure_interpreter
from peers.liger import Liger
from peers.megablocks import MegaBlocks
from peers.ours import Ours
from peers.reference import reference, relative_errors
from peers.scattermoe import ScatterMoE
from peers.shapes import CASES, tiny
from peers.side import Peer, Side, leaves, run
from peers.sonicmoe import SonicMoE

OURS = (Ours(backend="triton"), Ours(backend="triton", routing_given=True), Ours(backend="grouped"))
DENSE = ("cublas", "dense")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Relative norm errors: ours must stay within rounding of the dtype. A peer may be less accurate
# (bfloat16 atomics) and is timed, with its error in the table, unless it computes something else.
BOUNDS = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
PEER_FACTOR = 5.0


def passes_of(side: Side, problem: Problem) -> Passes:
    """The two passes of a layer on leaves of its own."""
    x_TD, weight_TK = leaves(problem)

    def forward() -> torch.Tensor:
        return side.forward(x_TD, problem.expert_TK, weight_TK)

    def backward(y_TD: torch.Tensor) -> None:
        torch.autograd.grad(y_TD, (x_TD, weight_TK, *side.parameters), problem.dy_TD)

    return Passes(forward, backward)


def split(case: Case, peers: Sequence[Peer]) -> tuple[list[Peer], list[Peer]]:
    """Who can run the case, and who can if its activation is SwiGLU instead."""
    able, only_swiglu = [], []
    for peer in peers:
        reason = peer.supports(case)
        if reason is None:
            able.append(peer)
            continue
        print(f"{case.name}: {peer.name} is left out, it {reason}")
        if peer.supports(case.with_swiglu()) is None:
            only_swiglu.append(peer)
    return able, only_swiglu


def build_checked(
    case: Case, problem: Problem, peers: Sequence[Peer]
) -> tuple[dict[str, Side], dict[str, float]]:
    """The layers that compute what they should, and the largest relative error of each."""
    right = reference(case, problem)
    sides: dict[str, Side] = {}
    errors: dict[str, float] = {}
    for peer in peers:
        ours = isinstance(peer, Ours)
        bound = BOUNDS[problem.x_TD.dtype] * (1.0 if ours else PEER_FACTOR)
        try:
            side = peer.build(case, problem.weights)
            found = relative_errors(run(side, problem), right)
        except Exception as error:  # a peer may raise anything; that is a result too
            if ours:
                raise
            print(f"{case.name}: {peer.name} fails, {type(error).__name__}: {error}")
            continue
        name, worst = max(found.items(), key=lambda item: item[1])
        if worst <= bound:
            sides[peer.name], errors[peer.name] = side, worst
            continue
        message = f"{case.name}: {peer.name} differs from float64 by {worst:.1e} in {name}"
        if ours:
            raise SystemExit(f"{message}, over {bound:.0e}")
        print(f"{message}; not timed")
    return sides, errors


def speeds(
    case: Case, seconds: Mapping[str, PassSeconds], dtype: torch.dtype, bandwidth: float
) -> dict[str, dict[str, object]]:
    """Rates and shares of each side."""
    work = flops(case.shape)
    best = work.both / seconds["cublas"].both
    ceiling = roofline(
        case.shape,
        dtype=dtype,
        peak_flops_per_second=best,
        peak_bytes_per_second=bandwidth,
    )
    return {
        name: {
            "forward ms": 1e3 * time.forward,
            "backward ms": 1e3 * time.backward,
            "forward TFLOP/s": work.forward / time.forward / 1e12,
            "backward TFLOP/s": work.backward / time.backward / 1e12,
            "both TFLOP/s": work.both / time.both / 1e12,
            "forward of cublas": seconds["cublas"].forward / time.forward,
            "both of cublas": seconds["cublas"].both / time.both,
            "of ceiling": "-" if name in DENSE else ceiling.both.seconds / time.both,
        }
        for name, time in seconds.items()
    }


MEMORY_COLUMNS = ("saved MiB", "held MiB", "peak MiB")
SPEED_COLUMNS = (
    "forward ms",
    "backward ms",
    "forward TFLOP/s",
    "backward TFLOP/s",
    "both TFLOP/s",
    "forward of cublas",
    "both of cublas",
    "of ceiling",
)


def measure(
    case: Case, peers: Sequence[Peer], *, device: str, dtype: torch.dtype, repeats: int
) -> list[dict[str, object]]:
    """Check, weigh and time the sides of a case, print and return one row for each."""
    problem = make_problem(case, device=device, dtype=dtype)
    sides, errors = build_checked(case, problem, peers)
    passes = {name: passes_of(side, problem) for name, side in sides.items()}
    passes["cublas"] = matmuls(case, problem)
    passes["dense"] = dense_layer(case, problem)
    print(f"{case.name}: measuring {', '.join(passes)}", flush=True)
    memory = {
        name: memory_of(both, sides[name].parameters if name in sides else (), device)
        for name, both in passes.items()
        if name != "cublas"  # its buffers were made before
    }
    memory["cublas"] = dict.fromkeys(MEMORY_COLUMNS, "-")
    warmup = 3 if device == "cuda" else 0
    seconds = alternate_passes(passes, device=device, repeats=repeats, warmup=warmup)
    if device == "cuda":
        columns = speeds(case, seconds, dtype, copy_bandwidth())
        clock = sm_clock()
    else:
        columns = {name: dict.fromkeys(SPEED_COLUMNS, "-") for name in passes}
        clock = "-"
    rows = [
        {
            "case": case.name,
            "side": name,
            **columns[name],
            **memory[name],
            "error": f"{errors[name]:.1e}" if name in errors else "-",
            "SM MHz": clock,
        }
        for name in passes
    ]
    print_table(rows)
    return rows


def ratios_of(rows: Sequence[Mapping[str, object]]) -> dict[str, float]:
    """Our kernels over the peers' by case, and the figures that the package is accepted by."""
    ratios: dict[str, float] = {}
    by_case: dict[str, dict[str, Mapping[str, object]]] = {}
    for row in rows:
        by_case.setdefault(row["case"], {})[row["side"]] = row
    for case, sides in by_case.items():
        ours = sides.get("triton")
        if ours is None:
            continue
        for name, row in sides.items():
            if name in ("triton", "triton, routing given"):
                continue
            for column in ("forward TFLOP/s", "backward TFLOP/s", "both TFLOP/s"):
                ratios[f"{case}: {column.split()[0]}, triton / {name}"] = ours[column] / row[column]
            if name not in DENSE:
                ratios[f"{case}: saved bytes, {name} / triton"] = (
                    row["saved MiB"] / ours["saved MiB"]
                )
    for suffix, side in (("", "triton"), ("_routing_given", "triton, routing given")):
        for case in ("large", "st32b"):
            row = by_case.get(case, {}).get(side)
            if row is not None:
                ratios[f"forward_share_of_cublas_{case}{suffix}"] = row["forward of cublas"]
                ratios[f"both_share_of_cublas_{case}{suffix}"] = row["both of cublas"]
        row = by_case.get("qwen3", {}).get(side)
        if row is not None:
            ratios[f"qwen3_forward_tflops{suffix}"] = row["forward TFLOP/s"]
            ratios[f"qwen3_both_tflops{suffix}"] = row["both TFLOP/s"]
    return ratios


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shapes", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--sides", nargs="+", help="only these, with cublas and dense")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--scattermoe", type=Path, help="check-out of shawntan/scattermoe")
    parser.add_argument("--liger", type=Path, help="check-out of linkedin/Liger-Kernel")
    parser.add_argument("--interpret", action="store_true", help="prove the script on the CPU")
    parser.add_argument("--json", type=Path, help="write the result here")
    return parser.parse_args()


def main() -> int:
    """Measure every case, and write the rows with --json; returns the exit status."""
    args = arguments()
    if args.interpret:
        ensure_interpreter()
    elif not torch.cuda.is_available():
        print(
            "experts_gpu needs a CUDA device, and there is none; --interpret runs it on tiny "
            "shapes on the CPU",
            file=sys.stderr,
        )
        return 2
    device, dtype = ("cpu", torch.float32) if args.interpret else ("cuda", DTYPES[args.dtype])

    everyone: list[Peer] = [
        *OURS,
        GroupedMM(),
        ScatterMoE(args.scattermoe),
        Liger(args.liger),
        MegaBlocks(),
        SonicMoE(),
    ]
    names = [peer.name for peer in everyone]
    unknown = [name for name in args.sides or () if name not in names]
    if unknown:
        print(f"--sides {unknown[0]!r}: expected one of {', '.join(names)}", file=sys.stderr)
        return 2
    peers = []
    for peer in everyone:
        if args.sides is None or peer.name in args.sides:
            reason = peer.available()
            if reason is None:
                peers.append(peer)
            print(f"{peer.name}: {peer.version() if reason is None else f'not there, {reason}'}")

    options = {"device": device, "dtype": dtype, "repeats": 1 if args.interpret else args.repeats}
    rows = []
    for name in args.shapes:
        case = tiny(CASES[name]) if args.interpret else CASES[name]
        able, only_swiglu = split(case, peers)
        rows += measure(case, able, **options)
        if only_swiglu:
            ours = [peer for peer in peers if isinstance(peer, Ours)]
            rows += measure(case.with_swiglu(), [*ours, *only_swiglu], **options)
    if args.json:
        packages = ["torch", "flan-moe-experts", "flan-moe-routing"]
        if importlib.util.find_spec("triton") is not None:
            packages.append("triton")
        write_json(
            args.json,
            benchmark="experts_gpu",
            packages=packages,
            versions={peer.name: peer.version() for peer in peers if not isinstance(peer, Ours)},
            rows=rows,
            ratios={} if args.interpret else ratios_of(rows),
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
