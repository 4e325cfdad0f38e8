"""The command line: its printed examples work, bad input ends in one clear line."""

import json
import shlex
import subprocess
import sys

import pytest

from flan_moe.data import cli, read_manifest

NI_TASK = {
    "Definition": ["Copy."],
    "Positive Examples": [],
    "Instances": [{"input": f"a{i}", "output": [f"a{i}"]} for i in range(40)],
}


def run(*arguments, cwd=None):
    command = [sys.executable, "-m", "flan_moe.data.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def examples_in(help_text):
    """The commands of a help text, continued lines joined."""
    text = help_text.replace("\\\n", " ")
    return [line for line in map(str.strip, text.splitlines()) if line.startswith("flan-moe-data ")]


def test_the_printed_examples_work_one_after_the_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    commands = examples_in(run("--help").stdout)
    assert len(commands) == 5
    for command in commands:
        assert cli.main(shlex.split(command)[1:]) == 0, command
        captured = capsys.readouterr()
        assert captured.out or captured.err, command
    assert (tmp_path / "mini-flan" / "manifest.json").is_file()


def test_a_build_stores_as_many_examples_of_a_task_as_asked_for(tmp_path):
    """A cap is a rate, so whoever mixes by caps must be able to store everything."""
    rows = (json.dumps({"prompt": f"Say {n}.", "target": str(n)}) for n in range(6000))
    (tmp_path / "echo.jsonl").write_text("".join(f"{row}\n" for row in rows))
    stored = {}
    for asked in ("10", "all"):
        out = str(tmp_path / asked)
        command = ["build", "--jsonl", str(tmp_path / "echo.jsonl"), "--vocab-size", "300"]
        limits = ["--eval-per-task", "20", "--validation-per-task", "20", "--workers", "0"]
        assert cli.main([*command, *limits, "--examples-per-task", asked, "--out", out]) == 0
        (task,) = read_manifest(out).tasks
        stored[asked] = task["train"]
    assert stored == {"10": 10, "all": 5960}


def test_the_printed_build_examples_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = run("build", "--help").stdout
    (data,) = (line for line in text.splitlines() if line.strip().startswith("seq "))
    subprocess.run(data, shell=True, check=True)
    own, flan, four = examples_in(text)
    assert cli.main(shlex.split(own)[1:]) == 0
    assert cli.main(["verify", "echo-data"]) == 0
    for folder, name in (("tasks", "task1_x.json"), ("splits/default", "test_tasks.txt")):
        (tmp_path / "natural-instructions" / folder).mkdir(parents=True)
        (tmp_path / "natural-instructions" / folder / name).write_text(json.dumps(NI_TASK))
    (tmp_path / "FLAN/flan/v2/cot_data").mkdir(parents=True)
    for name in ("aqua_train.tsv", "gsm8k_train.tsv"):
        rows = "".join(f"What is {i}?\t{i}\tIt is {i}.\n" for i in range(40))
        (tmp_path / "FLAN/flan/v2/cot_data" / name).write_text(rows)
    assert cli.main(shlex.split(flan)[1:]) == 0
    (tmp_path / "sets/SST-2").mkdir(parents=True)
    rows = [{"sentence": f"Film {i}.", "label": ("Good", "Bad")[i % 2]} for i in range(120)]
    (tmp_path / "sets/SST-2/train.json").write_text(json.dumps(rows))
    (tmp_path / "promptsource-and-rows/fish").mkdir(parents=True)
    template = "{name: ask, jinja: '{{ question }} ||| {{ answer }}'}"
    (tmp_path / "promptsource-and-rows/fish/templates.yaml").write_text(
        f"dataset: fish\ntemplates:\n  a: !Template {template}\n"
    )
    rows = "".join(json.dumps({"question": f"q{i}", "answer": f"a{i}"}) + "\n" for i in range(40))
    (tmp_path / "promptsource-and-rows/fish/train.jsonl").write_text(rows)
    assert cli.main(shlex.split(four)[1:]) == 0
    tables = {
        name: json.loads((tmp_path / "flan-four/train" / name / "tasks.json").read_text())["tasks"]
        for name in ("muffin", "t0_sf", "cot")
    }
    assert [task["name"] for task in tables["t0_sf"]] == ["fish_ask"]
    assert "cot_input_inversion_gsm8k" in [task["name"] for task in tables["cot"]]
    (sst2,) = tables["muffin"]
    assert sst2["types"]["zs_opt"] == pytest.approx(2 * sst2["types"]["zs_noopt"], abs=3)


def test_show_and_tasks_tell_what_is_there(mini, capsys):
    assert cli.main(["tasks", str(mini)]) == 0
    table = capsys.readouterr().out
    assert "weekday" in table
    assert table.count("held out") == 6
    assert cli.main(["show", str(mini), "--task", "reverse_list", "--limit", "1"]) == 0
    shown = capsys.readouterr().out
    assert "niv2/reverse_list" in shown
    assert "=> " in shown
    assert cli.main(["show", str(mini), "--packed", "--limit", "2"]) == 0
    packed = capsys.readouterr().out
    assert "32 examples in" in packed
    assert "[2] " in packed
    assert cli.main(["tasks", "--mini"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 24
    assert cli.main(["tasks"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1,838 tasks"


@pytest.mark.parametrize("command", ["tasks", "mix"])
def test_the_printed_examples_of_listings_work(command, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    commands = [line for line in examples_in(capsys.readouterr().out) if "DIR" not in line]
    assert len(commands) >= 4
    for line in commands:
        assert cli.main(shlex.split(line)[1:]) == 0, line
        assert len(capsys.readouterr().out.splitlines()) > 2, line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "nowhere"], "nowhere/manifest.json: no such file"),
        (["mini", "--out", "x", "--examples-per-task", "0"], "examples is 0; expected 1 or more"),
        (["mini", "--out", "x", "--vocab-size", "10"], "vocab_size is 10; expected at least 259"),
        (["show", "nowhere", "--limit", "-1"], "limit is -1; expected 0 or more"),
        (["build", "--out", "x"], "no raw data"),
        (["build", "--out", "x", "--cot", "nowhere"], "nowhere: expected a Flan chain-of-thought"),
    ],
)
def test_bad_input_ends_in_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("flan-moe-data: error: ")
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_a_listing_may_be_cut_short(mini):
    listing = f"{sys.executable} -m flan_moe.data.cli tasks {mini} | true"
    done = subprocess.run(listing, shell=True, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_an_unknown_task_is_named(mini, capsys):
    assert cli.main(["show", str(mini), "--task", "sudoku"]) == 1
    assert "no task 'sudoku' in train" in capsys.readouterr().err


def test_an_existing_directory_needs_overwrite(mini, tmp_path, capsys):
    (tmp_path / "thing").write_text("x")
    assert cli.main(["mini", "--out", str(tmp_path)]) == 1
    assert "exists already; choose another place or pass --overwrite" in capsys.readouterr().err
