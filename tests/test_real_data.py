"""Real Natural Instructions and Flan CoT files, from raw text to scores, by the console programs.

The files are no part of the repository; the test finds them in ``shared/data`` beside it.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

RAW = Path(__file__).parents[2] / "shared" / "data"
BIN = Path(sys.executable).parent

pytestmark = pytest.mark.skipif(
    not (RAW / "unpack").exists(), reason=f"the real data are not on this machine ({RAW})"
)

TRAINED = [
    "task673_google_wellformed_query_classification",
    "task1151_swap_max_min",
    "task1404_date_conversion",
    "task1425_country_iso_numeric",
    "task114_is_the_given_word_longest",
]
HELD_OUT = ["task1321_country_continent", "cot_qasc"]

RECIPE = """\
name: real
model:
  preset: flan-moe-tiny
data:
  path: {data}
  batch_size: 16
optimizer:
  name: adafactor
  lr: 0.02
training:
  duration: 60ba
  gradient_clip: 1.0
checkpoint:
  interval: 30ba
"""


def run(*command: str | Path, cwd: Path) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [BIN / command[0], *command[1:]], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Five Natural Instructions tasks and two CoT sets, built with one of each kind held out."""
    work = tmp_path_factory.mktemp("real")
    subprocess.run([RAW / "unpack", work], check=True, stdout=subprocess.DEVNULL)
    raw = work / "raw"
    tasks, cot = work / "tasks", work / "cot"
    tasks.mkdir()
    cot.mkdir()
    for name in [*TRAINED, *(n for n in HELD_OUT if n.startswith("task"))]:
        (tasks / f"{name}.json").symlink_to(raw / "natural_instructions" / "tasks" / f"{name}.json")
    for name in ("gsm8k", "qasc"):
        (cot / f"{name}_train.tsv").symlink_to(raw / "flan_cot" / f"{name}_train.tsv")
    sizes = ["--examples-per-task", "200", "--eval-per-task", "8", "--vocab-size", "2000"]
    run(
        *("flan-moe-data", "build", "--natural-instructions", tasks, "--cot", cot),
        *("--held-out", *HELD_OUT, *sizes, "--out", work / "data"),
        cwd=work,
    )
    return work / "data"


def test_from_raw_files_to_scores(data, tmp_path):
    """Shards, mixture, Composer training whose loss falls, export, evaluation of held-out tasks."""
    run("flan-moe-data", "verify", data, cwd=tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(data=data))
    run("flan-moe-train", "run", "recipe.yaml", "--out", "run", cwd=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    key = "loss/train/cross_entropy"
    losses = [line[key] for line in lines if key in line]
    assert len(losses) == 60
    assert statistics.mean(losses[-10:]) < 0.8 * statistics.mean(losses[:10])

    run("flan-moe-train", "export", "run", "model", cwd=tmp_path)
    run(
        *("flan-moe-eval", "run", "--model", "model", "--suite", data / "eval", "--out", "scores"),
        *("--shots", "0", "--mode", "direct", "cot", "--limit", "4"),
        cwd=tmp_path,
    )
    results = json.loads((tmp_path / "scores" / "results.json").read_text())
    held_out = {t["task"] for t in results["tasks"] if t["group"] == "held_out"}
    assert held_out == set(HELD_OUT)
    for score in results["tasks"]:
        assert score["n"] == 4
        assert score["interval"]["low"] <= score["score"] <= score["interval"]["high"]


def test_held_out_tasks_are_nowhere_in_training(data):
    trained = set()
    for table in (data / "train").glob("*/tasks.json"):
        trained |= {t["name"] for t in json.loads(table.read_text())["tasks"] if t["count"]}
    assert set(TRAINED) <= trained
    assert not trained & set(HELD_OUT)
