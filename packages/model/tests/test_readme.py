"""What the README shows runs in order, as a reader would paste it."""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_every_snippet_runs(t5_dir, tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tokenizer.save_pretrained(t5_dir)
    t5_dir.rename("flan-t5-base")
    snippets = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(snippets) == 6
    names = {}
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), names)
    written, again = (
        load_file(f"{d}/model.safetensors") for d in ("flan-t5-base", "flan-t5-base-again")
    )
    assert written.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in written.items())
    shown = capsys.readouterr().out
    assert float(re.search(r"OutputChange\(largest=([^,]+),", shown).group(1)) < 1e-4
    assert "decoder.layers.1 (" in shown
