"""The README's snippets run in order, as a reader would paste them; its table is complete."""

import re
from pathlib import Path

import pytest

from flan_moe.routing import PRESETS, RouterConfig
from flan_moe.routing import registry as registry_module

README = Path(__file__).parents[1] / "README.md"


def test_every_snippet_runs(monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(registry_module, "_registered", {})
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(snippets) == 8
    names = {}
    for snippet in snippets:
        exec(compile(snippet, str(README), "exec"), names)
    first, *_ = capsys.readouterr().out.splitlines()
    assert 100 <= int(first) <= 200


def test_the_table_has_every_router_and_says_which_may_be_in_decoders():
    rows = re.findall(r"^\| `(\w+)` \|.*\| (\w+) \|$", README.read_text(encoding="utf-8"), re.M)
    assert {name for name, _ in rows} == set(PRESETS)
    assert {name for name, word in rows if word == "yes"} == {
        name for name in PRESETS if RouterConfig(name=name).is_causal
    }
