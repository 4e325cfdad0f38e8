"""What the README shows runs as written."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from flan_moe.eval.cli import main
from flan_moe.eval.suite import load_suite

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def workplace(tmp_path, suite_dir, tiny_t5, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (suite_dir / "suite.json").read_text()
    (suite_dir / "suite.json").write_text(text.replace('"more_sums"', '"weekday"'))
    shutil.copytree(suite_dir, tmp_path / "mini-flan" / "eval")
    tiny_t5.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path


def test_the_commands_run(workplace):
    (commands,) = blocks("sh")
    for line in commands.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "flan-moe-eval"
        assert main(arguments) == 0
    assert (workplace / "report" / "index.html").is_file()


def test_the_snippets_run(workplace, capsys):
    for snippet in blocks("python"):
        exec(compile(snippet, "README.md", "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out
    assert "python-report/index.html" in printed
    assert (workplace / "python-report" / "index.html").is_file()


def test_the_suite_is_a_suite(tmp_path):
    (suite,) = blocks("json")
    item = re.search(r'`(\{"id": .*?\})`', README).group(1)
    (tmp_path / "suite.json").write_text(suite)
    (tmp_path / "sums.jsonl").write_text(item + "\n")
    (tmp_path / "sums.exemplars.jsonl").write_text(item.replace("1 + 1", "2 + 2") + "\n")
    assert load_suite(tmp_path).tasks[0].items[0].target == "2"
