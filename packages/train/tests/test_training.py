"""Training through Composer: it learns, resumes exactly, stops on request, refuses in time."""

import json
import signal

import pytest
import torch

from flan_moe.train.callbacks.metrics_log import read_metrics
from flan_moe.train.interruption import StopSignal, TrainingInterruptedError
from flan_moe.train.preflight import check_recipe
from flan_moe.train.run_folder import RunFolder
from flan_moe.train.trainer import build_trainer, train

STATE = ("model", "optimizers", "schedulers", "dataset_state", "callbacks")


def run(loaded, out):
    lines = []
    summary = train(loaded, out, report=lines.append)
    return summary, lines


def final_state(out):
    """Everything in the last checkpoint that training goes on from."""
    path = RunFolder(out).checkpoints()[-1][1]
    state = torch.load(path, weights_only=False)["state"]
    return {key: state[key] for key in STATE}


def assert_bitwise_equal(a, b, where=""):
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), f"{where}: differ by {(a - b).abs().max()}"
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_bitwise_equal(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_bitwise_equal(x, y, f"{where}/{index}")
    else:
        assert a == b, where


@pytest.fixture(scope="module")
def uninterrupted(data_path, tmp_path_factory):
    from conftest import RECIPE

    from flan_moe.train.recipe import read_recipe

    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    loaded = read_recipe(RECIPE.replace("DATA", str(data_path)), "recipe.yaml")
    summary, lines = run(loaded, out)
    return out, summary, lines


def test_the_loss_falls_and_everything_is_written_down(uninterrupted):
    out, summary, lines = uninterrupted
    lines_written = list(read_metrics(out / "metrics.jsonl"))
    records = [line for line in lines_written if "seen" not in line]
    assert [r["batch"] for r in records] == list(range(1, 13))
    losses = [r["loss/train/cross_entropy"] for r in records]
    assert losses[-1] < losses[0] - 1
    assert {"loss/train/balance", "loss/train/balance_weighted", "loss/train/z"} <= set(records[0])
    assert {"router/encoder.1/dropped", "router/decoder.1/load/03"} <= set(records[0])
    assert records[0]["examples"] == 16, "raw examples, not packed rows"
    assert records[0]["tokens"] > 16 * 10
    counts = [line for line in lines_written if "seen" in line]
    assert [line["batch"] for line in counts] == [2, 4, 6, 8, 10, 12], "at checkpoints"
    for line in counts:
        assert sum(task["samples"] for task in line["seen"].values()) == line["examples"]
        tokens = sum(t["input_tokens"] + t["target_tokens"] for t in line["seen"].values())
        assert tokens == line["tokens"], "as the model reads them, cut ones included"
    cut = {task: count["overlong"] for task, count in counts[-1]["seen"].items()}
    assert summary["overlong_examples"] == sum(cut.values()) > 0
    assert summary["batches"] == 12
    assert summary["examples"] == 12 * 16
    assert summary["losses"]["cross_entropy"] == losses[-1]
    assert json.loads((out / "finished.json").read_text()) == summary
    assert [batch for batch, _ in RunFolder(out).checkpoints()] == [2, 4, 6, 8, 10, 12]
    assert "examples longer than a row" in lines[0]
    assert [line.split()[2] for line in lines[1:-1]] == ["4", "8", "12"]
    assert "done" in lines[-2]
    total = summary["overlong_examples"]
    assert lines[-1].startswith(f"tiny: {total} of 192 examples were longer than a row and cut: ")
    most = max(cut, key=lambda task: (cut[task], task))
    assert f"{cut[most]}" in lines[-1]


@pytest.mark.parametrize("batch", [2, 6, 10])
def test_a_resumed_run_equals_the_uninterrupted_one(uninterrupted, load, tmp_path, batch):
    """With five batches an epoch: within the first and the second, and after the second's last."""
    whole, _, _ = uninterrupted
    out = tmp_path / "run"
    folder = RunFolder(out)
    plan = check_recipe(load())
    folder.open(plan.loaded.recipe, plan.data.fingerprint)
    folder.checkpoint_folder.joinpath(f"ba{batch}.pt").write_bytes(
        (whole / "checkpoints" / f"ba{batch}.pt").read_bytes()
    )
    summary, lines = run(load(), out)
    assert lines[0] == f"{out}: continuing after batch {batch}"
    assert summary["batches"] == 12
    assert_bitwise_equal(final_state(out), final_state(whole))


def test_validation_does_not_touch_training(uninterrupted, load, tmp_path):
    out = tmp_path / "run"
    run(load("evaluation={interval: 3ba, examples: 8}"), out)
    assert_bitwise_equal(final_state(out)["model"], final_state(uninterrupted[0])["model"])
    records = [r for r in read_metrics(out / "metrics.jsonl") if "metrics/cot/cross_entropy" in r]
    assert [r["batch"] for r in records] == [3, 6, 9, 12]
    assert all(0 <= r["metrics/muffin/token_accuracy"] <= 1 for r in records)


def validate(loaded, out):
    """Metrics of a validation, and the most rows that went through the model at once."""
    trainer = build_trainer(check_recipe(loaded), RunFolder(out))
    rows = []
    trainer.state.model.net.register_forward_pre_hook(
        lambda module, args, inputs: rows.append(len(inputs["input_ids"])), with_kwargs=True
    )
    trainer.eval()
    metrics = {
        f"{mixture}/{name}": float(metric.compute())
        for mixture, metrics in trainer.state.eval_metrics.items()
        for name, metric in metrics.items()
    }
    trainer.close()
    return metrics, max(rows)


def test_validation_fits_where_training_does(load, tmp_path):
    evaluation = "evaluation={interval: 3ba, examples: 16}"
    whole, most = validate(load(evaluation), tmp_path)
    assert most > 1
    divided, most = validate(load(evaluation, "training.microbatch_rows=1"), tmp_path)
    assert most == 1
    assert divided == pytest.approx(whole, rel=1e-5)
    assert "niv2/cross_entropy" in whole


def test_another_seed_gives_another_run(uninterrupted, load, tmp_path):
    out = tmp_path / "run"
    run(load("seed=18"), out)
    ours, theirs = final_state(out)["model"], final_state(uninterrupted[0])["model"]
    assert not any(torch.equal(ours[k], theirs[k]) for k in ours if "norm" not in k)


def test_a_finished_run_is_not_repeated(uninterrupted, load):
    out, summary, _ = uninterrupted
    before = (out / "checkpoints" / "ba12.pt").stat().st_mtime_ns
    again, lines = run(load(), out)
    assert again == summary
    assert lines == [f"{out}: this run is finished"]
    assert (out / "checkpoints" / "ba12.pt").stat().st_mtime_ns == before


def test_a_run_killed_before_it_could_say_so_is_finished(uninterrupted, load, tmp_path):
    """The last checkpoint was written, finished.json was not."""
    out = tmp_path / "run"
    plan = check_recipe(load())
    folder = RunFolder(out)
    folder.open(plan.loaded.recipe, plan.data.fingerprint)
    source = uninterrupted[0] / "checkpoints" / "ba12.pt"
    folder.checkpoint_folder.joinpath("ba12.pt").write_bytes(source.read_bytes())
    summary, _ = run(load(), out)
    assert summary["batches"] == 12
    assert_bitwise_equal(final_state(out), final_state(uninterrupted[0]))


def test_a_damaged_checkpoint_costs_its_interval_and_nothing_else(uninterrupted, load, tmp_path):
    out = tmp_path / "run"
    plan = check_recipe(load())
    folder = RunFolder(out)
    folder.open(plan.loaded.recipe, plan.data.fingerprint)
    for batch in (4, 6):
        data = (uninterrupted[0] / "checkpoints" / f"ba{batch}.pt").read_bytes()
        name = folder.checkpoint_folder / f"ba{batch}.pt"
        name.write_bytes(data if batch == 4 else data[: len(data) // 2])
    _, lines = run(load(), out)
    assert lines[0].startswith(f"{folder.checkpoint_folder / 'ba6.pt'}: damaged checkpoint")
    assert lines[1] == f"{out}: continuing after batch 4"
    assert_bitwise_equal(final_state(out), final_state(uninterrupted[0]))


def test_a_stop_signal_ends_the_run_after_the_batch_with_its_state_saved(
    uninterrupted, load, tmp_path
):
    out = tmp_path / "run"
    plan = check_recipe(load())
    folder = RunFolder(out)
    folder.open(plan.loaded.recipe, plan.data.fingerprint)
    stop = StopSignal()

    def ask_to_stop(line):
        stop.received = signal.SIGTERM  # the progress line of batch 4 comes in its batch_end

    trainer = build_trainer(plan, folder, stop=stop, report=ask_to_stop)
    with pytest.raises(TrainingInterruptedError, match="stopped after batch 4"):
        trainer.fit()
    trainer.close()
    assert [batch for batch, _ in folder.checkpoints()] == [2, 4]
    run(load(), out)
    assert_bitwise_equal(final_state(out), final_state(uninterrupted[0]))


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_both_optimizers_learn_with_microbatches(load, tmp_path, name):
    rate = {"adamw": 0.01, "adafactor": 0.03}[name]
    options = [f"optimizer={{name: {name}, lr: {rate}}}", "training.microbatch_rows=3"]
    run(load(*options), tmp_path / "run")
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    losses = [r["loss/train/total"] for r in records if "loss/train/total" in r]
    assert losses[-1] < losses[0] - 1
