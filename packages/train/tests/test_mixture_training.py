"""``data.mixture`` and ``data.curriculum``: what is drawn, resumed, counted, validated, refused."""

import functools
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections import Counter

import pytest
from conftest import RECIPE
from test_training import STATE, assert_bitwise_equal, final_state, run

from flan_moe.data import read_manifest
from flan_moe.train.callbacks.metrics_log import read_metrics
from flan_moe.train.preflight import check_recipe
from flan_moe.train.recipe import RecipeError, load_recipe, read_recipe
from flan_moe.train.run_folder import RunFolder, RunFolderError
from flan_moe.train.trainer import train

MIXTURE = """\
name: mine
sub_mixtures:
  answers: {weight: 0.75, mixtures: [muffin, t0_sf, niv2], cap: 8}
  rationales: {weight: 0.25, mixtures: [cot], temperature: 2}
  talk: {weight: 0.1, mixtures: [jsonl]}
held_out: [weekday, paraphrase]
"""
HELD_OUT = {"weekday", "paraphrase"}
# Twelve batches of 16, five an epoch: the change comes within the second epoch's second batch.
CHANGE = "data.curriculum={100sp: {rationales: 3}}"


@pytest.fixture(scope="module")
def recipe_file(data_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "mine.yaml").write_text(MIXTURE)
    text = RECIPE.replace("DATA", f"{data_path}, mixture: mine.yaml")
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def whole(recipe_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    summary, lines = run(load_recipe(recipe_file, [CHANGE]), out)
    return out, summary, lines


def seen(out):
    """Of each checkpoint's line, the counts."""
    return {r["batch"]: r["seen"] for r in read_metrics(out / "metrics.jsonl") if "seen" in r}


def drawn(loaded, batches):
    """Samples per task in the first batches, straight from the dataloader."""
    plan = check_recipe(loaded)
    names = {task["id"]: task["name"] for task in plan.data.manifest.tasks}
    loader = plan.data.train_loader(loaded.recipe)
    found, left = Counter(), batches
    while left:
        for batch in loader:
            found.update(names[task] for task in batch["task_ids"].tolist())
            left -= 1
            if not left:
                break
    loader.dataset.close()
    return found


def resume_at(whole, loaded, out, batch):
    folder = RunFolder(out)
    plan = check_recipe(loaded)
    folder.open(plan.loaded.recipe, plan.data.fingerprint, plan.data.mixture.record())
    source = whole / "checkpoints" / f"ba{batch}.pt"
    folder.checkpoint_folder.joinpath(source.name).write_bytes(source.read_bytes())
    folder.release()
    return run(loaded, out)


def test_the_mixture_and_its_change_decide_what_is_drawn(whole, data_path):
    out, _, lines = whole
    counts = seen(out)
    cot = {t["name"] for t in read_manifest(data_path).tasks if t["mixture"] == "cot"}

    def rationales(batch):
        return sum(c["samples"] for task, c in counts[batch].items() if task in cot)

    assert not HELD_OUT & set(counts[12])
    assert rationales(6) == pytest.approx(96 / 4, abs=3), "a quarter before the change"
    after = rationales(12) - rationales(8)
    assert after == pytest.approx(64 * 3 / 3.75, abs=4), "four fifths after it"
    assert re.match(
        r"tiny: mixture mine: \d+ tasks, 2 held out, 1 change of weights; "
        "no task for talk: the others divide the weight",
        lines[0],
    )
    record = json.loads((out / "mixture.json").read_text())
    assert list(record["stages"]) == ["0", "100"]
    assert record["stages"]["100"]["sub_mixtures"]["rationales"]["weight"] == 3
    assert set(record["stages"]["0"]["held_out"]) == HELD_OUT


@pytest.mark.parametrize("batch", [4, 6, 10])
def test_a_resume_equals_the_uninterrupted_run_across_the_change(
    whole, recipe_file, tmp_path, batch
):
    """Weights, optimizer, position and counts per task; from before, in and after the change."""
    out = tmp_path / "run"
    summary, lines = resume_at(whole[0], load_recipe(recipe_file, [CHANGE]), out, batch)
    assert lines[0] == f"{out}: continuing after batch {batch}"
    assert_bitwise_equal(final_state(out), final_state(whole[0]))
    assert seen(out)[12] == seen(whole[0])[12]
    assert summary["overlong_examples"] == whole[1]["overlong_examples"]


def test_counts_are_those_of_the_batches(whole, recipe_file):
    loaded = load_recipe(recipe_file, [CHANGE])
    for batch in (4, 12):
        found = {task: count["samples"] for task, count in seen(whole[0])[batch].items()}
        assert found == drawn(loaded, batch)


def test_a_checkpoint_without_counts_is_said_to_have_none(whole, recipe_file, tmp_path):
    import torch

    early = tmp_path / "early"
    (early / "checkpoints").mkdir(parents=True)
    state = torch.load(whole[0] / "checkpoints" / "ba10.pt", weights_only=False)
    del state["state"]["callbacks"]["TaskCounts"]
    torch.save(state, early / "checkpoints" / "ba10.pt")
    _, lines = resume_at(early, load_recipe(recipe_file, [CHANGE]), tmp_path / "run", 10)
    assert any("counted from batch 10 on" in line for line in lines)


RANK = """
import sys
from flan_moe.train.recipe import load_recipe
from flan_moe.train.trainer import train
recipe, out, *overrides = sys.argv[1:]
train(load_recipe(recipe, overrides), out, report=lambda line: None)
"""


def on_ranks(ranks, *arguments):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in range(ranks):
        place = {"RANK": rank, "LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": ranks}
        place |= {"LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = os.environ | {key: str(value) for key, value in place.items()}
        command = [sys.executable, "-c", RANK, *map(str, arguments)]
        processes.append(
            subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output[-3000:]


def test_two_ranks_count_what_one_counts_and_go_on_from_its_counts(whole, recipe_file, tmp_path):
    on_ranks(2, recipe_file, tmp_path / "two", CHANGE, "training.duration=4ba")
    assert seen(tmp_path / "two")[4] == seen(whole[0])[4]
    loaded = load_recipe(recipe_file, [CHANGE])
    plan, folder = check_recipe(loaded), RunFolder(tmp_path / "on")
    folder.open(plan.loaded.recipe, plan.data.fingerprint, plan.data.mixture.record())
    folder.release()
    source = whole[0] / "checkpoints" / "ba8.pt"
    folder.checkpoint_folder.joinpath(source.name).write_bytes(source.read_bytes())
    on_ranks(2, recipe_file, tmp_path / "on", CHANGE)
    assert seen(tmp_path / "on")[12] == seen(whole[0])[12]


def test_validation_is_by_sub_mixture_and_without_held_out_tasks(recipe_file, data_path):
    plan = check_recipe(load_recipe(recipe_file, ["evaluation={interval: 4ba, examples: 500}"]))
    names = {task["id"]: (task["mixture"], task["name"]) for task in plan.data.manifest.tasks}
    loaders = plan.data.validation_loaders(plan.loaded.recipe)
    found = {
        label: [names[task] for batch in loader for task in batch["task_ids"].tolist()]
        for label, loader in loaders.items()
    }
    for loader in loaders.values():
        loader.dataset.close()
    assert set(found) == {"answers", "rationales"}
    assert {mixture for mixture, _ in found["rationales"]} == {"cot"}
    assert {mixture for mixture, _ in found["answers"]} == {"muffin", "t0_sf", "niv2"}
    tasks = {name for label in found for _, name in found[label]}
    assert tasks == plan.data.mixture.tasks
    assert not tasks & HELD_OUT
    assert max(Counter(found["answers"]).values()) <= 4, "no validation example comes twice"


def test_validation_metrics_carry_the_names_of_sub_mixtures(recipe_file, tmp_path):
    options = ["evaluation={interval: 2ba, examples: 8}", "training.duration=2ba"]
    run(load_recipe(recipe_file, options), tmp_path / "run")
    keys = {key for line in read_metrics(tmp_path / "run" / "metrics.jsonl") for key in line}
    assert {"metrics/answers/cross_entropy", "metrics/rationales/cross_entropy"} <= keys


def test_a_preset_is_taken_by_its_name(data_path, load):
    plan = check_recipe(load("data.mixture=flan2022", "evaluation={interval: 4ba}"))
    assert "no task for dialog" in plan.data.describe_mixture()
    assert set(plan.data._validation(plan.loaded.recipe)) == {"flan2021", "t0", "niv2", "cot"}


def test_a_file_is_looked_for_beside_what_names_it(recipe_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check_recipe(load_recipe(recipe_file)).data.mixture.name == "mine"
    (tmp_path / "other.yaml").write_text(MIXTURE.replace("mine", "other"))
    over = load_recipe(recipe_file, ["data.mixture=other.yaml"])
    assert check_recipe(over).data.mixture.name == "other"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.mixtures={cot: 1}"], "data.mixture: expected null beside data.mixtures"),
        (["data.mixture=null"], "data.curriculum: expected null without data.mixture"),
        (["data.mixture=flan2023"], "data.mixture: no mixture 'flan2023'"),
        (["data.mixture=none.yaml"], "data.mixture: none.yaml: no such file"),
        (["data.mixture=[a]"], "data.mixture: expected text, got ['a']"),
        (
            ["data.curriculum={100ba: {answers: 1}}"],
            "data.curriculum.100ba: expected a number of examples such as '3200sp' as key",
        ),
        (
            ["data.curriculum={1000sp: {answers: 1}, 1_000sp: {answers: 2}}"],
            "data.curriculum.1_000sp: the same number as '1000sp'",
        ),
        (["data.curriculum={100sp: {}}"], "data.curriculum.100sp: expected the weight of some"),
        (
            ["data.curriculum={100sp: {answer: 1}}"],
            "data.curriculum.100sp.answer: no such sub-mixture in 'mine'; did you mean 'answers'?",
        ),
        (
            ["data.curriculum={100sp: {answers: -1}}"],
            "data.curriculum.100sp.answers: expected a number of at least 0, got -1",
        ),
        (
            ["data.curriculum={100sp: {answers: 0, rationales: 0, talk: 0}}"],
            "data.curriculum.100sp: the weights of sub_mixtures sum to 0",
        ),
        (
            ["data.curriculum={100sp: {answers: 0, rationales: 0}}"],
            "data.curriculum.100sp: mixture 'mine': none of the",
        ),
        (["data.epoch_size=8"], "data.epoch_size: expected at least data.batch_size (16), got 8"),
    ],
)
def test_what_cannot_be_is_refused_by_key(recipe_file, overrides, message):
    with pytest.raises(RecipeError) as error:
        check_recipe(load_recipe(recipe_file, [CHANGE, *overrides]))
    assert f": {message}" in str(error.value), error.value


def test_a_mistake_in_the_file_is_named_by_file_and_line(recipe_file, tmp_path):
    for name in ("recipe.yaml", "mine.yaml"):
        text = (recipe_file.parent / name).read_text()
        (tmp_path / name).write_text(text.replace("weight: 0.25", "weight: -1"))
    with pytest.raises(RecipeError) as error:
        check_recipe(load_recipe(tmp_path / "recipe.yaml"))
    assert f"recipe.yaml:3: data.mixture: {tmp_path / 'mine.yaml'}:4: " in str(error.value)
    (tmp_path / "mine.yaml").write_text(MIXTURE.replace("[weekday,", "[weekdai,"))
    with pytest.raises(RecipeError, match=r"data\.mixture: .*'weekdai' matches no task"):
        check_recipe(load_recipe(tmp_path / "recipe.yaml"))


def test_a_resume_with_a_changed_file_is_refused_with_what_changed(
    whole, recipe_file, data_path, tmp_path
):
    text = RECIPE.replace("DATA", f"{data_path}, mixture: moved.yaml")
    moved = read_recipe(text, str(tmp_path / "recipe.yaml"), [CHANGE])
    # The same mixture in another file, with other words about it, is the same run.
    (tmp_path / "moved.yaml").write_text(MIXTURE.replace("name: mine", "name: same"))
    assert run(moved, whole[0])[0] == whole[1]
    run(load_recipe(recipe_file, [CHANGE]), whole[0])
    (tmp_path / "moved.yaml").write_text(MIXTURE.replace("cap: 8", "cap: 7"))
    with pytest.raises(RunFolderError) as error:
        train(moved, whole[0], lambda line: None)
    assert "holds a run of another mixture: data.mixture 'moved.yaml' has fingerprint" in str(
        error.value
    )
    assert "from example 0.sub_mixtures.answers.cap: 8 -> 7" in str(error.value)
    with pytest.raises(RunFolderError, match=r"data\.curriculum\.100sp\.rationales: 3\.0 -> 2\.0"):
        run(load_recipe(recipe_file, ["data.curriculum={100sp: {rationales: 2}}"]), whole[0])
    with pytest.raises(RunFolderError, match="holds a run of another"):
        run(load_recipe(recipe_file, ["data.mixture=null"]), whole[0])


def test_data_at_a_url_train_like_those_on_disk(whole, recipe_file, data_path, tmp_path):
    handler = functools.partial(QuietHandler, directory=data_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        where = [f"data.path={url}", f"data.cache={tmp_path / 'cache'}"]
        run(load_recipe(recipe_file, [CHANGE, *where]), tmp_path / "run")
        with pytest.raises(RecipeError, match=rf"data\.path: {url}/nowhere/manifest\.json"):
            check_recipe(load_recipe(recipe_file, [f"data.path={url}/nowhere", where[1]]))
        server.shutdown()
    assert list((tmp_path / "cache").rglob("*.mds"))
    assert (tmp_path / "run" / "tokenizer" / "tokenizer.json").is_file()
    ours, theirs = final_state(tmp_path / "run"), final_state(whole[0])
    for key in STATE:
        assert_bitwise_equal(ours[key], theirs[key], key)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def test_a_packed_directory_is_refused_with_what_to_give_instead(data_path, load, tmp_path):
    from flan_moe.data import PackOptions, pack_directory

    pack_directory(
        data_path,
        tmp_path / "packed",
        PackOptions(max_input_tokens=256, max_target_tokens=64),
        report=lambda line: None,
    )
    expected = r"data\.path: .*packed rows; .*; give the folder they were packed from"
    with pytest.raises(RecipeError, match=expected):
        check_recipe(load(f"data.path={tmp_path / 'packed'}"))
