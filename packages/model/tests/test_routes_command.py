"""``flan-moe-model routes``."""

import json
import os
import shutil

import pytest
from transformers import AutoTokenizer

from flan_moe.model.cli import main

TEXT = ["--text", "Is 7 a prime ?", "--target", "yes"]


@pytest.fixture
def saved(sparse_model, tokenizer, tmp_path):
    import torch

    def save(name, **options):
        folder = tmp_path / name
        model = sparse_model(dtype=torch.float32, vocab_size=len(tokenizer), **options)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


def test_a_text_is_shown_and_written(saved, tmp_path, capsys):
    page, record = tmp_path / "r.html", tmp_path / "r.json"
    model = saved("m")
    assert main(["routes", str(model), *TEXT, "--html", str(page), "--json", str(record)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out, "what is captured is no terminal"
    assert [f"{stack}: " in out for stack in ("encoder 1", "encoder 3", "decoder 1")] == [True] * 3
    routes = json.loads(record.read_text())
    assert [token["id"] for token in routes["encoder"]] == [3, 4, 5, 6, 8, 1]
    assert len(routes["layers"]) == 3
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert {path.name for path in tmp_path.iterdir()} == {"m", "r.html", "r.json"}


def test_without_target_the_model_answers(saved, tmp_path, capsys):
    record = tmp_path / "r.json"
    command = ["routes", str(saved("m")), *TEXT[:2], "--max-new-tokens", "3", "--json", str(record)]
    assert main(command) == 0
    routes = json.loads(record.read_text())
    assert routes["generated"]
    assert len(routes["decoder"]) == len(routes["target_ids"]) <= 3
    assert "\nanswer  " in capsys.readouterr().out


def test_stack_and_layer_choose(saved, capsys):
    assert main(["routes", str(saved("m")), *TEXT, "--stack", "encoder", "--layer", "3"]) == 0
    out = capsys.readouterr().out
    assert "encoder 3: " in out
    assert "encoder 1: " not in out
    assert "decoder 1: " not in out


class Terminal:
    """Standard output that says it is a terminal."""

    encoding = "utf-8"

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("environment", "options", "colored"),
    [
        ({}, [], True),
        ({"NO_COLOR": "1"}, [], False),
        ({"NO_COLOR": ""}, [], True),
        ({"TERM": "dumb"}, [], False),
        ({}, ["--color", "never"], False),
        ({"NO_COLOR": "1"}, ["--color", "always"], True),
    ],
)
def test_a_terminal_is_coloured_unless_it_does_not_want_it(
    saved, monkeypatch, environment, options, colored
):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    assert main(["routes", str(saved("m")), *TEXT, *options]) == 0
    assert ("\x1b[" in terminal.text) == colored


@pytest.mark.parametrize("text", [TEXT, TEXT[:2]])
@pytest.mark.parametrize("decoder", ["top_k", "uniform"])
def test_a_model_routes_like_itself(saved, tmp_path, capsys, text, decoder):
    model = saved("m", decoder_router={"name": decoder, "num_experts": 4})
    copy, record = tmp_path / "copy", tmp_path / "c.json"
    shutil.copytree(model, copy)
    command = ["routes", str(model), *text, "--against", str(copy), "--json", str(record)]
    assert main([*command, "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out.count("100.0%") == 6
    for layer in json.loads(record.read_text())["layers"]:
        assert (layer["same_first"], layer["same_set"]) == (1.0, 1.0)
        assert layer["load_divergence"] == 0.0


def test_two_models_are_compared_over_the_first_ones_answer(saved, tmp_path, capsys):
    record, page = tmp_path / "c.json", tmp_path / "c.html"
    ours, theirs = saved("m"), saved("n", seed=3)
    command = ["routes", str(ours), *TEXT[:2], "--against", str(theirs), "--json", str(record)]
    assert main([*command, "--html", str(page), "--max-new-tokens", "4"]) == 0
    comparison = json.loads(record.read_text())
    assert comparison["ours"]["decoder"] == comparison["theirs"]["decoder"]
    assert any(layer["same_first"] < 1 for layer in comparison["layers"])
    assert "other first expert at" in capsys.readouterr().out
    assert "→" in page.read_text()


def _grow_tokenizer(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{dense}", *TEXT], "{dense}: a dense model; expected one with a router"),
        (["{absent}", *TEXT], "expected a directory with config.json, weights and tokenizer"),
        (["{m}", "--text", " "], "--text ' ': expected a text"),
        (["{m}", "--text", "a", "--target", ""], "--target '': expected a text"),
        (["{m}", *TEXT, "--layer", "2"], "--layer 2: not sparse; {m} has sparse layers (experts)"),
        (["{m}", *TEXT, "--layer", "3", "--stack", "decoder"], "--layer 3: not sparse in the dec"),
        (["{half}", *TEXT, "--stack", "decoder"], "--stack decoder: dense in {half}, which has"),
        (["{m}", *TEXT, "--html", "{absent}/x.html"], "x.html': expected a file in a folder that"),
        (["{m}", *TEXT, "--json", "{m}"], "expected a file in a folder that exists"),
        (["{m}", *TEXT, "--json", "o", "--html", "o"], "--html and --json are both 'o'"),
        (["{m}", *TEXT, "--device", "abacus"], "--device 'abacus': expected one that torch can"),
        (["{m}", *TEXT, "--against", "{six}"], "{six} has sparse layers (experts) encoder 1 (6)"),
        (["{m}", *TEXT, "--against", "{half}"], "expected the same, to compare expert by expert"),
        (["{m}", *TEXT, "--against", "{other}"], "have different tokenizers (of 11 and 12 tokens)"),
        (["{bare}", *TEXT], "{bare}: cannot load a tokenizer"),
    ],
)
def test_what_does_not_fit_is_refused(saved, tmp_path, capsys, arguments, message):
    router = {"name": "top_k", "num_experts": 6}
    options = {
        "m": {},
        "dense": {"encoder_router": None, "decoder_router": None},
        "half": {"decoder_router": None},
        "six": {"encoder_router": router},
        "other": {},
        "bare": {},
    }
    names = {name: tmp_path / name for name in (*options, "absent")}
    for name in options:
        if any(f"{{{name}}}" in argument for argument in arguments):
            saved(name, **options[name])
    if (tmp_path / "other").exists():
        _grow_tokenizer(tmp_path / "other")
    if (tmp_path / "bare").exists():
        for file in (tmp_path / "bare").glob("*token*"):
            file.unlink()
    assert main(["routes", *(argument.format(**names) for argument in arguments)]) == 2
    captured = capsys.readouterr()
    assert message.format(**names) in captured.err
    assert captured.out == ""


def test_a_link_keeps_being_one_and_what_is_no_file_is_not_replaced(saved, tmp_path, capsys):
    command = ["routes", str(saved("m")), *TEXT, "--html"]
    page, link, pipe = (tmp_path / name for name in ("page.html", "link.html", "pipe"))
    page.write_text("old")
    link.symlink_to(page.name)
    assert main([*command, str(link)]) == 0
    assert link.is_symlink()
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert main([*command, str(page), "--json", str(link)]) == 2
    os.mkfifo(pipe)
    assert main([*command, str(pipe)]) == 2
    assert pipe.is_fifo()
    assert "pipe': expected a file in a folder that exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["routes", "--text", "\udcff"],
        ["routes", "--text", "a", "--target", "\udcff"],
        ["generate", "--text", "\udcff"],
    ],
)
def test_a_text_that_is_no_utf_8_is_refused(capsys, arguments):
    """The shell hands over any bytes; those that are no characters become lone surrogates."""
    with pytest.raises(SystemExit):
        main([*arguments, "absent"])
    assert r"'\udcff': expected UTF-8" in capsys.readouterr().err
