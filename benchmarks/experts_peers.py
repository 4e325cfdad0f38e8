"""Do others' expert layers compute what ours do? On CPU, the kernels in Triton's interpreter.

Small layers, with random inputs of order one, float32. For each case and each peer: the output
and all gradients of the peer and of every backend of ours, against a float64 computation that uses
neither; and the peer against our `grouped` backend. Idle experts and one choice per token are
among the cases.

Peers: ScatterMoE and Liger-Kernel (SwiGLU only) in the interpreter, and, on torch >= 2.9, a plain
layer on `torch.nn.functional.grouped_mm`. Exits with 1 if anything disagrees by more than
``BOUND``, with 2 if no peer is there.

Run ``python benchmarks experts_peers [--scattermoe DIR] [--liger DIR] [--json PATH]``, where DIR
is a check-out; without it, the installed package is taken if there is one.
"""

import argparse
import sys
from pathlib import Path

import torch

from measure import print_table, write_json
from peers.case import Case, make_problem
from peers.grouped_mm import GroupedMM
from peers.interpreter import ensure_interpreter
from peers.liger import Liger
from peers.ours import Ours
from peers.reference import reference, relative_errors
from peers.scattermoe import ScatterMoE
from peers.side import Peer, run

BOUND = 1e-5
BACKENDS = ("reference", "grouped", "triton")
SIZES = {"tokens": 37, "d_model": 64, "d_ff": 32, "num_experts": 5}
# By name: the case, and how many experts stay without tokens.
CASES = {
    "top-2": (Case(name="top-2", **SIZES, top_k=2, activation="swiglu"), 0),
    "top-1": (Case(name="top-1", **SIZES, top_k=1, activation="swiglu"), 0),
    "top-3, idle experts": (
        Case(name="top-3, idle experts", **SIZES, top_k=3, activation="swiglu"),
        2,
    ),
    "geglu": (Case(name="geglu", **SIZES, top_k=2, activation="geglu"), 1),
    "switch": (Case(name="switch", **SIZES, top_k=1, activation="relu"), 1),
    "odd widths": (
        Case(
            name="odd widths",
            tokens=70,
            d_model=72,
            d_ff=40,
            num_experts=3,
            top_k=2,
            activation="swiglu",
        ),
        0,
    ),
}


def compare(case: Case, idle_experts: int, sides: list[Peer]) -> list[dict[str, object]]:
    """One row for each side against float64, and for each peer against `grouped`."""
    problem = make_problem(case, device="cpu", dtype=torch.float32, idle_experts=idle_experts)
    right = reference(case, problem)
    answers = {}
    for side in sides:
        reason = side.supports(case)
        if reason is not None:
            print(f"{case.name}: {side.name} is skipped, it {reason}")
            continue
        answers[side.name] = run(side.build(case, problem.weights), problem)
    rows = []
    for name, answer in answers.items():
        targets = {"float64": right}
        if name not in BACKENDS:
            targets["grouped"] = answers["grouped"]
        for target, expected in targets.items():
            errors = relative_errors(answer, expected)
            rows.append({"case": case.name, "side": name, "against": target, **errors})
    return rows


def print_errors(rows: list[dict[str, object]]) -> None:
    """As a table, errors in scientific notation."""
    print_table(
        [{k: f"{v:.1e}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    )


def main() -> int:
    """Compare every case, print the table, write it with --json; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--scattermoe", type=Path, help="check-out of shawntan/scattermoe")
    parser.add_argument("--liger", type=Path, help="check-out of linkedin/Liger-Kernel")
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--json", type=Path, help="write the result here")
    args = parser.parse_args()
    ensure_interpreter()

    peers: list[Peer] = []
    for peer in (ScatterMoE(args.scattermoe), Liger(args.liger), GroupedMM()):
        reason = peer.available()
        if reason is None:
            peers.append(peer)
        print(f"{peer.name}: {peer.version() if reason is None else f'not there, {reason}'}")
    if not peers:
        print("no peer is there: nothing to compare with", file=sys.stderr)
        return 2
    ours = [Ours(backend=backend) for backend in BACKENDS]
    missing = {side.name: side.available() for side in ours}
    for name, reason in missing.items():
        if reason is not None:
            print(f"{name}: not there, {reason}")
    sides = [*(side for side in ours if missing[side.name] is None), *peers]

    rows = [row for name in args.cases for row in compare(*CASES[name], sides)]
    print_errors(rows)
    worst = {
        (row["case"], row["side"], row["against"]): max(
            error for error in row.values() if isinstance(error, float)
        )
        for row in rows
    }
    wrong = {key: error for key, error in worst.items() if not error <= BOUND}
    for (case, side, target), error in wrong.items():
        print(f"{case}: {side} differs from {target} by {error:.1e}", file=sys.stderr)
    if args.json:
        write_json(
            args.json,
            benchmark="experts_peers",
            packages=("torch", "flan-moe-experts"),
            versions={peer.name: peer.version() for peer in peers},
            rows=rows,
            ratios={
                f"{peer.name}: largest relative error against grouped": max(
                    error
                    for (_, side, target), error in worst.items()
                    if (side, target) == (peer.name, "grouped")
                )
                for peer in peers
            },
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
