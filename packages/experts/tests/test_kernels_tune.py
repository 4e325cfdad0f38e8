"""The tuner: what it picks, what it refuses, what it writes."""

import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
from kernel_oracle import INTERPRETED, kernels_run

from flan_moe.experts.kernels import tune
from flan_moe.experts.kernels.candidates import candidates
from flan_moe.experts.kernels.config import KERNELS, TileConfig
from flan_moe.experts.kernels.table import Table, parse_table, shipped_table
from flan_moe.experts.kernels.workload import parse_workload

TEXT = "24,40,3,20,2,geglu,float32"
SMALL, MIDDLE, LARGE = (TileConfig(block_m=m, block_n=32, block_k=16) for m in (16, 32, 64))


class FakeStage(NamedTuple):
    """A kernel whose result is right for some configurations only."""

    run: object
    expected: torch.Tensor = torch.ones(4)


def pick(run, seconds):
    """What `fastest` picks of the three, if each takes so long, and what it says."""
    said, running = [], []

    def recorded(config):
        running.append(config)
        return run(config)

    def timer(function):
        function()
        return seconds[running[-1]]

    best = tune.fastest(
        FakeStage(recorded), [SMALL, MIDDLE, LARGE], timer=timer, tolerance=1e-3, say=said.append
    )
    return best, said


def test_the_fastest_wins():
    best, _ = pick(lambda config: torch.ones(4), {SMALL: 3.0, MIDDLE: 1.0, LARGE: 2.0})
    assert best == MIDDLE


def test_a_wrong_result_is_never_timed():
    def run(config):
        return torch.ones(4) * (1.01 if config == MIDDLE else 1.0)

    best, said = pick(run, {SMALL: 3.0, LARGE: 2.0})
    assert best == LARGE
    assert any("WRONG" in line and "block_m=32" in line for line in said)


def test_nan_is_wrong():
    best, _ = pick(lambda config: torch.full((4,), torch.nan), {})
    assert best is None


def test_what_does_not_run_is_said_and_left_out():
    def run(config):
        if config == MIDDLE:
            raise RuntimeError("out of resource: shared memory")
        return torch.ones(4)

    best, said = pick(run, {SMALL: 3.0, LARGE: 4.0})
    assert best == SMALL
    assert any("cannot run" in line and "block_m=32" in line for line in said)


def test_winners_join_the_table_and_changes_are_told():
    work = parse_workload(TEXT)
    shapes = []

    def winners(config):
        stages = {"up": FakeStage(lambda _: torch.ones(4)), "dwi": FakeStage(lambda _: 1 / 0)}
        found = tune.tune_workload(
            work, stages, capability=90, timer=lambda run: 1.0, say=lambda _: None
        )
        shapes.extend(found)
        return dict.fromkeys(found, config)

    table, changes = tune.merge(shipped_table(), winners(SMALL))
    assert [shape.kernel for shape in shapes] == ["up_gated"]
    assert len(changes) == 1
    assert "a default ->" in changes[0]
    assert table.choose(shapes[0]) == SMALL
    assert table.defaults == shipped_table().defaults
    again, changes = tune.merge(table, winners(SMALL))
    assert (again, changes) == (table, [])
    _, changes = tune.merge(table, winners(LARGE))
    assert "block_m=16" in changes[0]
    assert "block_m=64" in changes[0]


def test_a_table_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "configs.json"
    tune.write_table(shipped_table(), path)
    assert parse_table(path.read_text()) == shipped_table()
    monkeypatch.setattr(Table, "to_json", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tune.write_table(shipped_table(), path)
    assert [file.name for file in tmp_path.iterdir()] == ["configs.json"]
    assert parse_table(path.read_text()).defaults


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without a device")
def test_without_a_device_it_says_so(tmp_path, capsys):
    path = tmp_path / "configs.json"
    tune.write_table(shipped_table(), path)
    assert tune.main(["--shapes", TEXT, "--out", str(path)]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    ["", "1,2,3", "24,40,3,20,2,geglu,float64", "24,40,3,20,4,geglu,float32", "0" + TEXT[2:]],
)
def test_a_bad_workload_is_named(text):
    with pytest.raises(ValueError, match="expected"):
        parse_workload(text)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bits", [16, 32])
def test_there_is_something_to_try_for_every_kernel(kernel, bits):
    few = candidates(kernel, bits=bits, capability=90, rows_per_expert=1)
    many = candidates(kernel, bits=bits, capability=80, rows_per_expert=4096)
    assert few
    assert len(set(many)) == len(many) > len(few) * ("dw" not in kernel)
    assert not any(config.tma for config in many)


@kernels_run
def test_every_stage_is_the_kernel_and_its_reference():
    from flan_moe.experts.kernels.stages import make_stages

    device = torch.device("cpu" if INTERPRETED else "cuda")
    for text in (TEXT, "24,40,3,20,1,relu,float16,float32"):
        work = parse_workload(text)
        stages = make_stages(work, device)
        assert set(stages) == {"up", "down", "dhidden", "dx", "dwi", "dwo"}
        for stage in stages.values():
            best = tune.fastest(
                stage,
                [MIDDLE],
                timer=lambda run: 1.0,
                tolerance=tune.TOLERANCE[work.dtype],
                say=print,
            )
            assert best == MIDDLE


def test_importing_the_tuner_needs_no_triton():
    code = "import sys, flan_moe.experts.kernels.tune; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
