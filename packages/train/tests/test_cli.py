"""The command line: help that is quick and true, exit statuses that mean something."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
from conftest import RECIPE

from flan_moe.data.cli import _parser as data_parser
from flan_moe.train.callbacks.metrics_log import read_metrics
from flan_moe.train.cli import EXAMPLES, main
from flan_moe.train.cli import _parser as train_parser
from flan_moe.train.export import model_weights
from flan_moe.train.interruption import INTERRUPTED
from flan_moe.train.recipe import load_recipe


@pytest.fixture
def recipe(data_path, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("DATA", str(data_path)))
    return str(path)


def test_help_needs_neither_torch_nor_composer():
    code = (
        "import sys\nfrom flan_moe.train.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'composer', 'streaming', 'yaml') if m in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert output.endswith("[]\n")
    assert "examples (" in output


def test_the_examples_of_help_are_accepted_as_printed():
    """Parsed, and every recipe resolved with its overrides; nothing is trained here."""
    parsers = {"flan-moe-data": data_parser(), "flan-moe-train": train_parser()}
    examples = [shlex.split(x, comments=True) for x in EXAMPLES.splitlines() if x.startswith("  ")]
    assert len(examples) == 5
    for program, *arguments in examples:
        options = parsers[program].parse_args(arguments)
        if hasattr(options, "recipe"):
            load_recipe(options.recipe, options.overrides)


@pytest.mark.parametrize(("given", "policy"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_openmp_waits_passively_unless_told_otherwise(monkeypatch, given, policy):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    assert main(["export", "absent", "model"]) == 2
    assert os.environ["OMP_WAIT_POLICY"] == policy


def test_check_prints_the_resolved_recipe_and_the_model(recipe, capsys):
    assert main(["check", recipe, "seed=3"]) == 0
    output = capsys.readouterr().out
    assert "seed: 3" in output
    assert re.search(r"# parameters: [0-9,]+ in all, [0-9,]+ active per token", output)


def test_check_training_and_report_count_the_same_operations(load, recipe, capsys, tmp_path):
    """One model on one data folder has one number of FLOPs per token, and its assumption is said.

    The report's is `test_the_twins_differ_in_parameters_and_agree_in_compute_and_data`.
    """
    from flan_moe.model import flops_per_token
    from flan_moe.train.preflight import check_recipe
    from flan_moe.train.run_folder import RunFolder
    from flan_moe.train.trainer import build_trainer

    assert main(["check", recipe, "data.target_length=64"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if "MFLOPs" in x)
    plan = check_recipe(load("data.target_length=64"))
    flops = flops_per_token(plan.config, encoder_length=128, decoder_length=64)
    assert line == (
        f"# forward pass: {flops.mean / 1e6:.2f} MFLOPs per token (mean of the two stacks; "
        "attention over full rows of 128 input and 64 target tokens)"
    )
    trainer = build_trainer(plan, RunFolder(tmp_path))
    batch = next(iter(plan.data.train_loader(plan.loaded.recipe)))
    tokens = {s: int((batch[f"{s}_segments"] > 0).sum()) for s in ("encoder", "decoder")}
    expected = 3 * sum(getattr(flops, s) * n for s, n in tokens.items())
    assert trainer.state.model.flops_per_batch(batch) == expected
    trainer.close()


@pytest.mark.parametrize("order", ["overrides first", "option first"])
def test_run_and_export(recipe, tmp_path, capsys, order):
    overrides = ["training.duration=2ba", "checkpoint.interval=1ba"]
    option = ["--out", str(tmp_path / "run")]
    rest = [*overrides, *option] if order == "overrides first" else [*option, *overrides]
    assert main(["run", recipe, *rest]) == 0
    assert "2 batches" in capsys.readouterr().out
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "model")]) == 0
    assert (tmp_path / "model" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "RECIPE", "optimizer.lr=fast"], "optimizer.lr: expected a positive number"),
        (["check", "absent.yaml"], "absent.yaml: cannot read the recipe"),
        (["export", "absent", "model"], "absent: not a run folder"),
        (["quickstart", "--out", "OUT", "--data", "absent"], "--data absent: expected Natural"),
        (["quickstart", "--out", "OUT", "--steps", "0"], "steps: expected a positive whole"),
    ],
)
def test_what_is_refused_ends_with_status_2_and_one_line(
    recipe, tmp_path, capsys, arguments, message
):
    names = {"RECIPE": recipe, "OUT": str(tmp_path / "out")}
    assert main([names.get(a, a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("flan-moe-train: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_disk_that_is_full_at_a_checkpoint_ends_with_status_1(
    recipe, tmp_path, capsys, monkeypatch
):
    from flan_moe.train.callbacks import checkpoint_writer

    def full(state, filename):
        raise RuntimeError("unexpected pos 573440 vs 573328")

    monkeypatch.setattr(checkpoint_writer, "save_checkpoint", full)
    assert main(["run", recipe, "--out", str(tmp_path / "run")]) == 1
    assert "/.partial-ba2.pt: the checkpoint cannot be written" in capsys.readouterr().err


def test_a_run_that_diverges_stops_before_it_saves(recipe, tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["run", recipe, "optimizer.lr=1e30", "--out", str(out)]
    assert main(arguments) == 1
    assert "values that are not finite, and nothing was saved" in capsys.readouterr().err
    assert not (out / "finished.json").exists()
    for file in (out / "checkpoints").iterdir():
        assert all(weight.isfinite().all() for weight in model_weights(file).values())


def test_a_place_that_cannot_be_written_ends_with_status_1(recipe, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["run", recipe, "--out", str(tmp_path / "file" / "run")]) == 1
    assert "Not a directory" in capsys.readouterr().err


def test_unknown_arguments_are_refused(recipe):
    with pytest.raises(SystemExit) as exit_:
        main(["run", recipe, "--epochs=3"])
    assert exit_.value.code == 2


def test_sigterm_saves_the_state_and_says_so_by_the_exit_status(recipe, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "flan_moe.train.cli", "run", recipe, "--out", str(out)]
    command += ["training.duration=4000ba", "checkpoint.interval=4000ba", "schedule.warmup=2ba"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 300
    while not list(read_metrics(out / "metrics.jsonl")):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == INTERRUPTED == 75, output
    stopped = int(re.search(r"stopped after batch (\d+); run the same command", output).group(1))
    assert [p.name for p in (out / "checkpoints").iterdir()] == [f"ba{stopped}.pt"]
    assert [line["batch"] for line in read_metrics(out / "metrics.jsonl")][-1] == stopped


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_quickstart_stopped_outside_training_says_how_to_go_on(tmp_path, number):
    """Composer exits at signals without a word as soon as it has been imported."""
    code = (
        "import os, sys, time, composer\n"
        "from flan_moe.train import cli, quickstart\n"
        "def run(self):\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "    time.sleep(60)\n"
        "quickstart.Quickstart.run = run\n"
        "sys.exit(cli.main(['quickstart', '--out', sys.argv[1]]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    stopped = subprocess.run(command, capture_output=True, text=True)
    assert stopped.returncode == 128 + number
    assert "interrupted; run the same command to continue" in stopped.stderr
