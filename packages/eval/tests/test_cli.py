"""The command line: its own examples run as printed, and mistakes are told in one message."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from flan_moe.eval.cli import EXAMPLES, main


@pytest.fixture
def workplace(tmp_path, suite_dir, tiny_t5, tokenizer, monkeypatch):
    """A folder as the examples assume it: ``mini-flan/eval`` and ``model``."""
    monkeypatch.chdir(tmp_path)
    text = (suite_dir / "suite.json").read_text()
    (suite_dir / "suite.json").write_text(text.replace('"more_sums"', '"weekday"'))
    shutil.copytree(suite_dir, tmp_path / "mini-flan" / "eval")
    tiny_t5.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path


def commands(text):
    return re.findall(r"^ *flan-moe-eval (.*)$", text, re.MULTILINE)


def test_the_examples_run_as_printed(workplace, capsys):
    examples = commands(EXAMPLES)
    assert len(examples) == 7
    for example in examples:
        assert main(shlex.split(example)) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert (workplace / "report" / "index.html").is_file()
    assert "weekday" in shown


@pytest.mark.parametrize("command", ["run", "compare", "report", "show"])
def test_every_command_shows_an_example_of_itself(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    (example,) = commands(capsys.readouterr().out)
    assert example.startswith(command)
    listed = [shlex.split(text) for text in commands(EXAMPLES)]
    assert shlex.split(example) in listed


@pytest.mark.parametrize(("given", "policy"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_openmp_waits_passively_unless_told_otherwise(monkeypatch, given, policy):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    assert main(["show", "absent"]) == 2
    assert os.environ["OMP_WAIT_POLICY"] == policy


def test_show_prints_the_prompt_as_the_model_reads_it(workplace, capsys):
    main(shlex.split("show mini-flan/eval --task sums --shots 1 --mode cot --item 2"))
    assert capsys.readouterr().out == (
        "sums : what is 0 plus 5 a a ?\nLet's think step by step.\n"
        "we add them 0 . So the answer is 0.\n\n"
        "sums : what is 1 plus 0 a ?\nLet's think step by step.\n\n"
        "[item sums-1, target: 1]\n"
    )


def test_run_prints_tables_and_writes_results(workplace, capsys):
    command = "run --model model --suite mini-flan/eval --out out --limit 3 --direct-tokens 4"
    assert main(shlex.split(command + " --mode direct --task sums colours")) == 0
    printed = capsys.readouterr()
    assert "95 % over items" in printed.out
    assert printed.out.rstrip().endswith("out/results.json")
    assert printed.err.count("0-shot direct") == 2
    assert main(shlex.split("show out")) == 0
    assert capsys.readouterr().out.strip() in printed.out


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("run --model model --suite nowhere --out out", "suite"),
        ("run --model ./nowhere --suite mini-flan/eval --out out", "nowhere: no such folder"),
        ("run --model model --suite mini-flan/eval --out out --shots 9", "shots: [9]"),
        ("run --model model --suite mini-flan/eval --out out --task x", "'x' is not in suite"),
        ("run --model model --suite mini-flan/eval --out out --cot-tokens 0", "cot_tokens: 0"),
        ("run --model model --suite mini-flan/eval --out model/config.json/x", "is a file"),
        ("show mini-flan/eval --task sums --item 99", "--item: 99"),
        ("show mini-flan/eval --task colours --mode cot", "mode 'cot'"),
        ("compare model mini-flan", "results.json: no such file"),
        ("report label=mini-flan --out out", "results.json: no such file"),
    ],
)
def test_mistakes_are_told_in_one_message(workplace, capsys, command, complaint):
    assert main(shlex.split(command)) == 2
    error = capsys.readouterr().err
    assert error.startswith("flan-moe-eval: error: ")
    assert complaint in error
    assert not (workplace / "out").exists()


@pytest.mark.parametrize("command", ["--help", "run --help", "show mini-flan/eval"])
def test_help_and_show_need_no_torch(workplace, command):
    code = (
        "import sys; from flan_moe.eval.cli import main\n"
        f"try: main({shlex.split(command)!r})\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)


def test_reports_need_no_torch(workplace):
    command = "run --model model --suite mini-flan/eval --out out --limit 2 --mode direct"
    assert main(shlex.split(command + " --direct-tokens 4")) == 0
    code = (
        "import sys; from flan_moe.eval.cli import main\n"
        "assert main(['report', 'out', '--out', 'report']) == 0\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)


def test_a_reader_that_goes_away_is_not_an_error(workplace):
    command = f"{shlex.quote(sys.executable)} -m flan_moe.eval.cli show mini-flan/eval | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("toy: ")
    assert done.stderr == ""
