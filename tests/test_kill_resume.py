"""``kill -9`` in the middle of training: run again, and the weights are those of a whole run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("composer", reason="training needs Composer")

RECIPE = """\
name: killed
model: {preset: flan-moe-tiny, overrides: {dropout_rate: 0.1}}
data: {path: mini-flan, batch_size: 16, epoch_size: 160}
optimizer: {name: adamw, lr: 3e-3}
schedule: {name: cosine, warmup: 4ba}
training: {duration: 40ba, device: cpu, gradient_clip: 1.0}
checkpoint: {interval: 3ba}
logging: {progress_every: 1}
"""
KILL_AT = (8, 25)  # batches done, in the first and in the third epoch
PATIENCE = 300  # seconds until a process counts as stuck


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A recipe beside a small mini-Flan."""
    from flan_moe.data import BuildOptions, build_data_directory, mini_flan_sources

    folder = tmp_path_factory.mktemp("kill")
    sources = mini_flan_sources(examples=12, validation=0, evaluation=2, seed=0)
    options = BuildOptions(
        name="mini-flan", source="tests", vocab_size=400, max_input_tokens=128, max_target_tokens=48
    )
    build_data_directory(folder / "mini-flan", sources, options, report=lambda line: None)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def start(folder, out):
    command = [sys.executable, "-m", "flan_moe.train.cli", "run", "recipe.yaml", "--out", out]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for_batch(process, metrics, batch):
    """Until the run has done a batch, by what it has written down."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        if lines and json.loads(lines[-1])["batch"] >= batch:
            return
        if process.poll() is not None:
            pytest.fail(f"ended before batch {batch}:\n{process.stdout.read()}")
        time.sleep(0.002)
    pytest.fail(f"no batch {batch} after {PATIENCE} s")


def finish(process):
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    return output


def weights(run: Path):
    newest = max((run / "checkpoints").glob("ba*.pt"), key=lambda p: int(p.stem[2:]))
    assert newest.name == "ba40.pt"
    return torch.load(newest, weights_only=False)["state"]["model"]


def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(folder):
    whole = start(folder, "whole")
    for number, batch in enumerate(KILL_AT):
        killed = start(folder, "killed")
        wait_for_batch(killed, folder / "killed" / "metrics.jsonl", batch)
        os.kill(killed.pid, signal.SIGKILL)
        output, _ = killed.communicate(timeout=PATIENCE)
        assert killed.returncode == -signal.SIGKILL, output
        assert ("continuing after batch" in output) == (number > 0), output
    finish(whole)
    output = finish(start(folder, "killed"))
    resumed_after = int(output.split("continuing after batch ")[1].split()[0])
    assert KILL_AT[-1] - 4 <= resumed_after < 40, "the last kill must have cost something"

    ours, theirs = weights(folder / "killed"), weights(folder / "whole")
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert different == []
    lines = [
        json.loads(line) for line in (folder / "killed" / "metrics.jsonl").read_text().splitlines()
    ]
    batches = [line["batch"] for line in lines if "seen" not in line]
    assert batches == list(range(1, 41)), "every batch is logged once, across three processes"
    counts = [line["seen"] for line in lines if "seen" in line]
    assert sum(task["samples"] for task in counts[-1].values()) == lines[-1]["examples"]
    assert not list((folder / "killed" / "checkpoints").glob(".partial*"))
