"""The benchmarks of the experts: that they run, and that they notice what is wrong."""

import importlib.util
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

# What ScatterMoE exports, in plain torch; rows are expert-sorted choices, FACTOR is 1 if right.
SCATTERMOE = """
import torch

def flatten_sort_count(expert_idxs, num_experts):
    flat = expert_idxs.flatten()
    experts, order = torch.sort(flat, stable=True)
    return experts, order, flat.bincount(minlength=num_experts).cumsum(0)

def parallel_linear(inputs, weights, k, experts, order, offsets, gates=None,
                    grouped_in=False, grouped_out=False):
    rows = inputs if grouped_in else inputs[order // k]
    out = torch.stack([row @ weights[expert] for row, expert in zip(rows, experts)])
    if grouped_out:
        return out
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order))
    return FACTOR * (out[places].unflatten(0, gates.shape) * gates[..., None]).sum(1)
"""


def run_benchmark(*arguments):
    return subprocess.run(
        [sys.executable, str(BENCHMARKS), *arguments], capture_output=True, text=True
    )


@pytest.fixture
def scattermoe_with(tmp_path):
    def make(factor):
        (tmp_path / "scattermoe").mkdir()
        source = SCATTERMOE.replace("FACTOR", str(factor))
        (tmp_path / "scattermoe" / "__init__.py").write_text(source)
        return tmp_path

    return make


@pytest.fixture
def benchmark_modules(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_a_peer_that_agrees_passes(scattermoe_with, tmp_path):
    result = tmp_path / "peers.json"
    run = run_benchmark(
        "experts_peers", "--scattermoe", scattermoe_with(1.0), "--json", str(result)
    )
    assert run.returncode == 0, run.stdout + run.stderr
    record = json.loads(result.read_text())
    compared = {
        (row["case"], row["against"]) for row in record["rows"] if row["side"] == "scattermoe"
    }
    assert ("switch", "float64") in compared
    assert ("top-3, idle experts", "grouped") in compared
    assert record["versions"]["scattermoe"] == "unknown"  # a folder that is no git check-out
    assert record["ratios"]["scattermoe: largest relative error against grouped"] < 1e-5


def test_a_peer_that_is_slightly_wrong_is_noticed(scattermoe_with):
    folder = scattermoe_with(1.0001)
    run = run_benchmark("experts_peers", "--scattermoe", folder, "--cases", "top-2")
    assert run.returncode == 1, run.stdout + run.stderr
    assert "top-2: scattermoe differs from float64 by 1.0e-04" in run.stderr


def test_without_a_peer_nothing_is_claimed(tmp_path):
    others = hasattr(torch.nn.functional, "grouped_mm") or importlib.util.find_spec("liger_kernel")
    run = run_benchmark("experts_peers", "--scattermoe", tmp_path, "--cases", "top-2")
    assert f"scattermoe: not there, scattermoe is not in {tmp_path}" in run.stdout
    assert run.returncode == (0 if others else 2), run.stdout + run.stderr
    assert ("no peer is there" in run.stderr) == (not others)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_gpu_benchmark_refuses_a_machine_without_one():
    run = run_benchmark("experts_gpu")
    assert run.returncode == 2
    assert "needs a CUDA device" in run.stderr


def test_a_side_that_does_not_exist_is_refused():
    run = run_benchmark("experts_gpu", "--interpret", "--sides", "scatermoe")
    assert run.returncode == 2
    assert "--sides 'scatermoe': expected one of triton" in run.stderr


def test_the_gpu_benchmark_runs_whole_in_the_interpreter(scattermoe_with, tmp_path):
    result = tmp_path / "gpu.json"
    run = run_benchmark(
        "experts_gpu",
        "--interpret",
        "--shapes",
        "large",
        "switch_base",
        "--scattermoe",
        scattermoe_with(1.0),
        "--json",
        str(result),
    )
    assert run.returncode == 0, run.stdout + run.stderr
    record = json.loads(result.read_text())
    rows = {(row["case"], row["side"]): row for row in record["rows"]}
    for case in ("large", "switch_base"):
        for side in ("grouped", "scattermoe"):
            assert float(rows[case, side]["error"]) < 1e-5
            assert rows[case, side]["saved MiB"] > 0
    times = {row["forward ms"] for row in record["rows"]}
    assert times == {"-"}  # an interpreter's times say nothing
    assert record["ratios"] == {}


def test_a_wrong_peer_is_not_timed_on_the_gpu(scattermoe_with):
    run = run_benchmark(
        "experts_gpu",
        "--interpret",
        "--shapes",
        "switch_base",
        "--sides",
        "grouped",
        "scattermoe",
        "--scattermoe",
        scattermoe_with(1.01),
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "switch_base: scattermoe differs from float64 by 1.0e-02" in run.stdout
    assert "measuring grouped, cublas, dense" in run.stdout


@pytest.mark.usefixtures("benchmark_modules")
def test_errors_are_found_in_one_expert_and_where_zero_is_expected():
    from peers.case import Case, make_problem
    from peers.reference import reference, relative_errors

    case = Case(
        name="case", tokens=20, d_model=8, d_ff=6, num_experts=4, top_k=2, activation="geglu"
    )
    problem = make_problem(case, device="cpu", dtype=torch.float32, idle_experts=1)
    right = reference(case, problem)
    assert max(relative_errors(right, right).values()) == 0.0

    dwi_EDH = right.dwi_EDH.clone()
    dwi_EDH[1] *= 1.5
    errors = relative_errors(right._replace(dwi_EDH=dwi_EDH), right)
    assert errors["dwi, worst expert"] == pytest.approx(0.5)
    assert 0.0 < errors["dwi"] < 0.5
    assert errors["dwo"] == errors["y"] == 0.0

    stale = right.dwo_EFD.clone()
    stale[3, 0, 0] = 1e-20  # the idle expert's gradient must be zero
    assert relative_errors(right._replace(dwo_EFD=stale), right)["dwo, worst expert"] == math.inf
    y_TD = right.y_TD.clone()
    y_TD[0, 0] = math.nan
    assert relative_errors(right._replace(y_TD=y_TD), right)["y"] == math.inf


@pytest.mark.usefixtures("benchmark_modules")
def test_the_reference_is_the_formula():
    """One token, one expert, numbers by hand: y = w relu(x wi) wo."""
    from flan_moe.experts import ExpertWeights
    from peers.case import Case, Problem
    from peers.reference import reference

    case = Case(name="", tokens=1, d_model=1, d_ff=1, num_experts=1, top_k=1, activation="relu")
    one = torch.ones(1, 1)
    problem = Problem(
        2.0 * one,
        torch.zeros(1, 1).long(),
        0.5 * one,
        ExpertWeights(3.0 * one[None], 5.0 * one[None]),
        one,
    )
    y, dx, dwi, dwo, dweight = (tensor.item() for tensor in reference(case, problem))
    assert (y, dx, dwi, dwo, dweight) == (15.0, 7.5, 5.0, 3.0, 30.0)


@pytest.mark.usefixtures("benchmark_modules")
def test_sides_take_turns_and_each_pass_has_its_own_time():
    from measure import Passes, alternate_passes

    calls = []

    def passes(name, forward_seconds, backward_seconds):
        def forward():
            calls.append(name)
            time.sleep(forward_seconds)
            return torch.tensor(1.0)

        def backward(output):
            calls.append(f"{name} backward")
            time.sleep(backward_seconds)

        return Passes(forward, backward)

    sides = {"a": passes("a", 0.02, 0.06), "b": passes("b", 0.01, 0.0)}
    seconds = alternate_passes(sides, device="cpu", repeats=2, warmup=1)
    assert calls == 3 * ["a", "a backward", "b", "b backward"]
    assert 0.02 <= seconds["a"].forward < 0.06 <= seconds["a"].backward
    assert seconds["a"].both >= 0.08
    assert seconds["b"].forward >= 0.01


@pytest.mark.usefixtures("benchmark_modules")
def test_ratios_have_the_names_that_issues_give():
    from experts_gpu import CASES, ratios_of, speeds
    from measure import PassSeconds

    seconds = {
        "triton": PassSeconds(2e-3, 4e-3, 6e-3),
        "triton, routing given": PassSeconds(1.6e-3, 4e-3, 5.6e-3),
        "liger": PassSeconds(3e-3, 8e-3, 11e-3),
        "cublas": PassSeconds(1e-3, 2e-3, 3e-3),
    }
    rows = []
    for name in ("large", "qwen3"):
        columns = speeds(CASES[name], seconds, torch.bfloat16, bandwidth=4e12)
        for side in seconds:
            saved = {"saved MiB": 2.0 if side == "liger" else 1.0}
            rows.append({"case": name, "side": side, **columns[side], **saved})
    ratios = ratios_of(rows)
    assert ratios["forward_share_of_cublas_large"] == pytest.approx(0.5)
    assert ratios["both_share_of_cublas_large"] == pytest.approx(0.5)
    assert ratios["forward_share_of_cublas_large_routing_given"] == pytest.approx(1 / 1.6)
    assert ratios["large: forward, triton / liger"] == pytest.approx(1.5)
    assert ratios["large: both, triton / liger"] == pytest.approx(11 / 6)
    assert ratios["large: saved bytes, liger / triton"] == pytest.approx(2.0)
    forward = 6 * 8 * 32768 * 2048 * 768
    assert ratios["qwen3_forward_tflops"] == pytest.approx(forward / 2e-3 / 1e12)
    assert ratios["qwen3_both_tflops"] == pytest.approx(3 * forward / 6e-3 / 1e12)
    ceilings = {row["side"]: row["of ceiling"] for row in rows if row["case"] == "large"}
    # Above the share of cublas: combining waits for memory, and bare products do not combine.
    assert 0.5 < ceilings["triton"] < 0.6
    assert ceilings["cublas"] == "-"
