"""A built data directory: complete, disjoint from its evaluation, equal bytes for equal inputs."""

import json
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from flan_moe.data.build import BuildOptions, build_data_directory
from flan_moe.data.cli import main
from flan_moe.data.example import Example
from flan_moe.data.mini_flan import TASK_FAMILIES, group_of
from flan_moe.data.sources.task_source import TaskContent, TaskSource
from flan_moe.data.storage.manifest import open_data_directory, read_manifest
from flan_moe.data.storage.shards import read_mds, read_webdataset
from flan_moe.data.storage.task_table import read_task_table
from flan_moe.data.storage.verify import verify_data_directory
from flan_moe.data.suite import SuiteItem
from flan_moe.data.tokenization.tokenizer import load_tokenizer

HELD_OUT = {family.name for family in TASK_FAMILIES if family.held_out}


def texts(directory, split):
    """Task name, prompt and target of every stored sample."""
    tokenizer = load_tokenizer(directory / "tokenizer")
    names = [task["name"] for task in read_manifest(directory).tasks]
    for mixture in read_manifest(directory).splits[split]:
        for sample in read_mds(directory / split / mixture):
            prompt, target = (
                tokenizer.decode(sample[key].tolist(), skip_special_tokens=True)
                for key in ("input_ids", "labels")
            )
            yield names[sample["task"]], prompt, target


def suite(directory):
    """Task entry, items and exemplars of the evaluation suite."""
    folder = directory / "eval"
    for task in json.loads((folder / "suite.json").read_text())["tasks"]:
        files = (folder / task["file"], folder / task["exemplars"])
        yield task, *([json.loads(line) for line in f.read_text().splitlines()] for f in files)


def tree(directory):
    return {
        str(file.relative_to(directory)): file.read_bytes()
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


def test_the_manifest_describes_what_is_there(mini):
    manifest = open_data_directory(mini, hashes=True)
    assert [task["name"] for task in manifest.tasks] == [family.name for family in TASK_FAMILIES]
    assert [task["id"] for task in manifest.tasks] == list(range(24))
    for task, family in zip(manifest.tasks, TASK_FAMILIES, strict=True):
        held_out = family.held_out
        assert task["group"] == group_of(family)
        assert task["train"] == (0 if held_out else 40)
        assert task["eval"] == 12
    assert set(manifest.splits["train"]) == {"muffin", "t0_sf", "niv2", "cot"}
    assert manifest.splits["train"]["niv2"]["examples"] == 4 * 40
    assert manifest.vocab_size == len(load_tokenizer(mini / "tokenizer"))
    assert (manifest.pad_token_id, manifest.eos_token_id) == (0, 1)
    for line in verify_data_directory(mini):
        assert "match" in line


def test_held_out_families_are_never_trained_on(mini):
    for split in ("train", "validation"):
        trained = {name for name, _, _ in texts(mini, split)}
        assert not trained & HELD_OUT
        assert len(trained) == 18


def test_no_evaluation_question_is_in_any_training_prompt(mini):
    prompts = [prompt for _, prompt, _ in texts(mini, "train")]
    everything = "\n\n".join(prompts)
    for task, items, exemplars in suite(mini):
        questions = {item["input"] for item in items}
        assert len(questions) == len(items) == 12
        assert not questions & {exemplar["input"] for exemplar in exemplars}
        assert not any(question in everything for question in questions), task["name"]


def test_the_suite_has_the_promised_format(mini):
    record = json.loads((mini / "eval" / "suite.json").read_text())
    assert (record["format"], record["version"]) == ("flan-moe-eval-suite", 2)
    assert record["name"] == "mini-flan"
    for (task, items, exemplars), family in zip(suite(mini), TASK_FAMILIES, strict=True):
        assert task["name"] == family.name
        assert task["group"] == group_of(family)
        assert task["cot"] == family.cot
        assert task["chance"] == family.chance
        assert task["cot_cue"] == ("Let's think step by step." if family.cot else "")
        for item in items + exemplars:
            assert set(item) == {"id", "input", "targets", "options", "rationale"}
            assert (item["rationale"] is not None) == family.cot
            if family.kind == "multiple_choice":
                assert set(item["targets"]) <= set(item["options"])
                assert all(f"\n- {option}" in item["input"] for option in item["options"])


def test_every_target_can_be_read_back(mini):
    for name, _, target in texts(mini, "train"):
        if "the answer is" in target:
            assert target.endswith("."), name


def test_both_formats_hold_the_same_samples(mini):
    for mixture in ("muffin", "cot"):
        pairs = zip(
            read_mds(mini / "train" / mixture),
            read_webdataset(mini / "webdataset" / "train" / mixture),
            strict=True,
        )
        for ours, theirs in pairs:
            assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()
            assert ours["labels"].tolist() == theirs["labels"].tolist()
            assert (ours["task"], ours["template"]) == (theirs["task"], theirs["template"])


def test_samples_are_stored_task_by_task_as_the_table_says(mini):
    for mixture in ("muffin", "t0_sf", "niv2", "cot"):
        table = read_task_table(mini / "train" / mixture)
        stored = [sample["task"] for sample in read_mds(mini / "train" / mixture)]
        for task in table.tasks:
            assert set(stored[task.start : task.start + task.count]) == {task.id}


def test_equal_inputs_give_equal_bytes(mini, rebuild, tmp_path):
    again = tree(rebuild(tmp_path / "again"))
    first = tree(mini)
    assert first.keys() == again.keys()
    for name, data in first.items():
        assert data == again[name], name
    other = tree(rebuild(tmp_path / "other", seed=1))
    changed = {name for name, data in first.items() if data != other.get(name)}
    assert "train/cot/shard.00000.mds" in changed
    assert "eval/weekday.jsonl" in changed


def source(name="copy", **content):
    """A task made by hand."""
    examples = [
        Example(
            task=name, mixture="jsonl", template="zs_opt/zero_shot/0", prompt=p, target=p, meta=meta
        )
        for p, meta in content.pop("train")
    ]
    items = tuple(
        SuiteItem(id=text, input=text, targets=("x",), problem=text)
        for text in content.pop("items", ())
    )
    return TaskSource(
        name=name,
        mixture="jsonl",
        group="held_in",
        cot=False,
        open=lambda fits: TaskContent(
            train=examples, validation=(), items=items, exemplars=(), kind="generate", chance=0.0
        ),
    )


OPTIONS = BuildOptions(name="hand", source="test", vocab_size=300)


def silent(line):
    pass


def test_questions_that_training_shows_in_any_task_are_removed_and_counted(tmp_path):
    first = source("a", train=[("one", {}), ("two\ntwo\n\nthree", {"shown": ["three", "two"]})])
    second = source("b", train=[("four", {})], items=("one", "two", "three", "four", "five"))
    manifest = build_data_directory(tmp_path / "out", [first, second], OPTIONS, report=silent)
    assert manifest.dropped == {"evaluation question also in training": 4}
    assert [(task["eval"], task["eval_removed"]) for task in manifest.tasks] == [(0, 0), (1, 4)]
    (entry,) = json.loads((tmp_path / "out" / "eval" / "suite.json").read_text())["tasks"]
    assert entry["name"] == "b"
    assert "five" in (tmp_path / "out" / "eval" / entry["file"]).read_text()


def test_without_questions_there_is_no_suite(tmp_path):
    manifest = build_data_directory(
        tmp_path / "out", [source(train=[("one", {})])], OPTIONS, report=silent
    )
    assert manifest.tasks[0]["eval"] == 0
    assert not (tmp_path / "out" / "eval").exists()
    open_data_directory(tmp_path / "out")


def test_sources_that_cannot_be_built_are_refused(tmp_path):
    good = source(train=[("one", {})])
    for sources, message in (
        ([good, good], "task 'copy' is given twice"),
        ([replace(good, name="../up")], "task '../up': expected a name of letters"),
        (
            [replace(good, name="x" * 201)],
            "xxx...': a name of 201 characters; expected 200 at most",
        ),
        ([good, replace(good, name="Copy")], "tasks 'copy' and 'Copy' differ only in case"),
        ([replace(good, name="a.exemplars")], "task 'a.exemplars': expected another name"),
        ([replace(good, group="held_out", open=None)], "every task is held out"),
        ([source(train=[])], "every task is held out"),
    ):
        with pytest.raises(ValueError, match=message):
            build_data_directory(tmp_path / "out", sources, OPTIONS, report=silent)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 2**63}, "seed is 9223372036854775808; expected 0 to"),
        ({"vocab_size": 0}, "vocab_size is 0; expected a positive number"),
        ({"max_target_tokens": 2**32}, "max_target_tokens is 4294967296; expected at most"),
    ],
)
def test_options_that_no_manifest_could_hold_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        replace(OPTIONS, **options)


def test_an_existing_directory_is_refused_before_any_work(mini, tmp_path):
    def fail(line):
        pytest.fail(f"work began: {line}")

    with pytest.raises(FileExistsError, match="exists already"):
        build_data_directory(mini, [source(train=[("one", {})])], OPTIONS, report=fail)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("x")
    options = replace(OPTIONS, overwrite=True)
    with pytest.raises(FileExistsError, match=r"holds no manifest\.json"):
        build_data_directory(tmp_path / "home", [source(train=[("one", {})])], options, report=fail)


def test_a_build_that_is_stopped_leaves_nothing_under_the_name(tmp_path):
    command = [sys.executable, "-m", "flan_moe.data.cli", "mini", "--examples-per-task", "100"]
    for number in (signal.SIGTERM, signal.SIGKILL):
        folder = tmp_path / number.name
        folder.mkdir()
        out = [*command, "--out", str(folder / "out")]
        process = subprocess.Popen(out, stderr=subprocess.PIPE, text=True)
        for line in process.stderr:  # the middle: tasks are being tokenised
            if "sentiment: 100 train" in line:
                break
        process.send_signal(number)
        rest = process.stderr.read()
        status = process.wait(60)
        assert "wrote" not in rest, "the signal came too late to mean anything"
        assert [entry.name for entry in folder.iterdir()] == [".out.building"]
        if number == signal.SIGTERM:
            assert status == 130
            assert "interrupted; nothing unfinished has its final name" in rest
            assert "Traceback" not in rest
        else:
            assert status == -signal.SIGKILL


def damage(file, how):
    data = file.read_bytes()
    if how == "remove":
        file.unlink()
    elif how == "truncate":
        file.write_bytes(data[: len(data) // 2])
    else:
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        ("manifest.json", "remove", r"manifest\.json: no such file; expected a directory built"),
        ("manifest.json", "truncate", r"manifest\.json: damaged manifest"),
        ("train/cot/shard.00000.mds", "remove", r"train/cot/shard\.00000\.mds: missing shard"),
        ("train/cot/shard.00000.mds", "truncate", r"shard\.00000\.mds: \d+ bytes; index"),
        ("train/cot/index.json", "truncate", r"train/cot/index\.json: damaged index"),
        ("validation/niv2/tasks.json", "truncate", r"niv2/tasks\.json: damaged task table"),
        ("train/niv2/tasks.json", "remove", r"niv2/tasks\.json: no such file"),
        ("tokenizer/tokenizer.json", "flip", "tokenizer_sha256 is .* written with another"),
        ("tokenizer/tokenizer.json", "remove", r"tokenizer\.json: no such file"),
    ],
)
def test_damage_is_found_when_the_directory_is_opened(mini_copy, name, how, message):
    damage(mini_copy / name, how)
    with pytest.raises(ValueError, match=message):
        open_data_directory(mini_copy)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("train/muffin/shard.00001.mds", r"train/muffin/shard\.00001\.mds: damaged shard"),
        ("eval/weekday.jsonl", r"eval/weekday\.jsonl: damaged"),
        ("webdataset/train/cot/shard-00000.tar", r"cot/shard-00000\.tar: damaged shard"),
    ],
)
def test_a_flipped_bit_is_found_by_verify(mini_copy, name, message):
    damage(mini_copy / name, "flip")
    open_data_directory(mini_copy, hashes=False)
    with pytest.raises(ValueError, match=message):
        list(verify_data_directory(mini_copy))


def altered(file, path, value):
    """Set one value of a JSON file."""
    record = part = json.loads(file.read_text())
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    file.write_text(json.dumps(record))


COT_PATH = {"train": {"../cot": {"examples": 160}}}


@pytest.mark.parametrize(
    ("name", "path", "value", "message"),
    [
        ("manifest.json", ("files",), [], r"damaged manifest: files is \[\]; expected an object"),
        ("manifest.json", ("vocab_size",), "x", r"vocab_size is 'x'; expected a whole number"),
        ("manifest.json", ("vocab_size",), 0, "vocab_size is 0; expected a positive whole number"),
        ("manifest.json", ("pad_token_id",), 10**30, "pad_token_id is 10{30}; expected a whole"),
        ("manifest.json", ("eos_token_id",), 5000, "eos_token_id is 5000; expected it below"),
        ("manifest.json", ("max_input_tokens",), None, "max_input_tokens is None; expected"),
        (
            "manifest.json",
            ("splits",),
            {"train": {"cot": {}}},
            r"splits\.train\.cot\.examples: miss",
        ),
        ("manifest.json", ("splits",), COT_PATH, r"splits: 'train/\.\./cot' leaves the directory"),
        (
            "manifest.json",
            ("splits",),
            {"train": {"/etc": {"examples": 160}}},
            "splits: '/etc' leaves the dir",
        ),
        ("manifest.json", ("splits", "train"), {}, r"splits\.train is empty"),
        ("manifest.json", ("tasks", 1, "id"), 10**12, r"tasks\[1\]\.id is 10{12}; expected 1"),
        (
            "manifest.json",
            ("tasks",),
            [],
            r"train/\w+/tasks\.json: task \d+ is '\w+', but manifest\.json has no such task",
        ),
        (
            "manifest.json",
            ("tasks", 1, "name"),
            "other",
            r"tasks\.json: task 1 is '\w+', but manifest\.json has 'other'",
        ),
        ("manifest.json", ("files",), {"/etc/passwd": ""}, "files: '/etc/passwd' leaves the dir"),
        ("manifest.json", ("tasks", 0), {"id": 0}, r"tasks\[0\]\.name: missing"),
        ("train/cot/index.json", ("shards",), 5, "not an MDS index"),
        ("train/cot/index.json", ("shards", 0), None, r"shards\[0\]: None; expected an object"),
        (
            "train/cot/index.json",
            ("shards", 0, "column_encodings", 0),
            "pkl",
            r"index\.json: shards\[0\]: column_encodings is \['pkl', .*; expected",
        ),
        (
            "train/cot/index.json",
            ("shards", 0, "raw_data", "bytes"),
            "many",
            r"index\.json: shards\[0\]: raw_data\.bytes is 'many'; expected a whole number",
        ),
        (
            "train/cot/tasks.json",
            ("tasks", 0, "cap"),
            1.5,
            r"damaged task table: tasks\[0\]\.cap is 1\.5; expected a whole number",
        ),
    ],
)
def test_a_value_that_cannot_be_is_named(mini_copy, name, path, value, message):
    altered(mini_copy / name, path, value)
    with pytest.raises(ValueError, match=message):
        open_data_directory(mini_copy)


@pytest.mark.parametrize("name", ["manifest.json", "train/cot/index.json", "train/cot/tasks.json"])
def test_json_nested_without_end_is_damage(mini_copy, name):
    (mini_copy / name).write_text("[" * 100_000)
    with pytest.raises(ValueError, match=f"{name}: damaged"):
        open_data_directory(mini_copy)


def test_verify_compares_the_manifest_with_the_tokenizer(mini_copy, capsys):
    size = read_manifest(mini_copy).vocab_size
    altered(mini_copy / "manifest.json", ("vocab_size",), size + 1)
    assert main(["verify", str(mini_copy)]) == 1
    assert f"vocab_size is {size + 1}, but its tokenizer has {size}" in capsys.readouterr().err


def test_a_model_or_tokenizer_that_does_not_fit_is_refused(mini):
    manifest = open_data_directory(mini, vocab_size=5000)
    open_data_directory(mini, vocab_size=manifest.vocab_size)
    with pytest.raises(
        ValueError, match=rf"vocab_size is {manifest.vocab_size}; the model has 999"
    ):
        open_data_directory(mini, vocab_size=999)
    with pytest.raises(ValueError, match="expected 00ff, the tokenizer of the model"):
        open_data_directory(mini, tokenizer_sha256="00ff")


def test_another_version_is_refused(mini_copy):
    file = mini_copy / "manifest.json"
    file.write_text(file.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(ValueError, match="version is not 1; build the data with this version"):
        open_data_directory(mini_copy)


def test_the_kind_of_the_tokenizer_can_be_chosen(rebuild, tmp_path):
    rebuild(tmp_path / "unigram", tokenizer_model="unigram")
    saved = json.loads((tmp_path / "unigram" / "tokenizer" / "tokenizer.json").read_text())
    assert saved["model"]["type"] == "Unigram"
    with pytest.raises(ValueError, match="tokenizer_model is 'wordpiece'; expected one of bpe"):
        rebuild(tmp_path / "wordpiece", tokenizer_model="wordpiece")


def test_a_given_tokenizer_is_used_and_copied(mini, rebuild, tmp_path):
    manifest = read_manifest(rebuild(tmp_path / "again", tokenizer=str(mini / "tokenizer")))
    assert manifest.vocab_size == read_manifest(mini).vocab_size
    load_tokenizer(tmp_path / "again" / "tokenizer")
