"""The benchmark of whole models: that it runs, and that it notices what is wrong."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_it_writes_the_ratios_that_are_promised(tmp_path):
    record = tmp_path / "model.json"
    tiny = ["--tiny", "--threads", "1", "--repeats", "1", "--new-tokens", "3"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS), "model", *tiny, "--json", str(record)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    content = json.loads(record.read_text())
    promised = {
        "hf_over_ours_train_e64",
        "hf_over_ours_generate_e8",
        "sparse_over_dense_train_e8",
        "t5_over_ours_dense_train",
        "t5_over_ours_dense_generate",
    }
    assert promised | {f"{name}_unpadded" for name in promised} <= set(content["ratios"])
    assert all(ratio > 0 for ratio in content["ratios"].values())
    # the ratio is of times, the faster of theirs, and the table has these times
    ms = {(row["case"], row["batch"], row["side"]): row["ms"] for row in content["rows"]}
    sides = ("transformers", "transformers (to zero)")
    theirs = min(ms["train_e64", "padded", side] for side in sides)
    expected = theirs / ms["train_e64", "padded", "ours"]
    assert content["ratios"]["hf_over_ours_train_e64"] == pytest.approx(expected)


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    for name in ("model", "measure", "seq2seq", "seq2seq.sides", "seq2seq.batches"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("model")
    for name in ("model", "measure", "seq2seq", "seq2seq.sides", "seq2seq.batches"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_models_that_differ_are_not_timed(benchmark, kind):
    sizes = benchmark.TINY
    pair = (
        benchmark.switch_sides(sizes, row_length=16, device="cpu")
        if kind == "sparse"
        else benchmark.dense_sides(sizes, "cpu")
    )
    shape = benchmark.Shape(rows=4, encoder=16, decoder=8)
    batch = benchmark.make_batches(shape, sizes.vocab_size, "cpu")["padded"]
    theirs = batch if kind == "dense" else {**batch, "output_router_logits": False}
    benchmark.check_training(pair, batch, theirs, benchmark.pack(batch), "same")
    with torch.no_grad():
        pair.theirs.get_parameter("decoder.final_layer_norm.weight")[0] += 0.05
    with pytest.raises(SystemExit, match="changed: logits: the sides differ"):
        benchmark.check_training(pair, batch, theirs, None, "changed")
    with torch.no_grad():
        pair.theirs.shared.weight.copy_(pair.theirs.shared.weight.flip(0))
    with pytest.raises(SystemExit, match="of the generated ids differ"):
        benchmark.generating_sides({"": pair}, batch, "changed", new_tokens=4)


def test_a_padded_batch_is_about_half_padding_and_packs_without_loss(benchmark):
    shape = benchmark.Shape(rows=8, encoder=128, decoder=32)
    batches = benchmark.make_batches(shape, 100, "cpu")
    assert benchmark.padding_share(batches["unpadded"]) == 0
    assert 0.4 < benchmark.padding_share(batches["padded"]) < 0.5
    packed = benchmark.pack(batches["padded"])
    assert len(packed["input_ids"]) < 8
    for key, side, filler in (("input_ids", "encoder", 0), ("labels", "decoder", -100)):
        whole, rows = batches["padded"][key], packed[key]
        segments = packed[f"{side}_segments"]
        found = sorted(
            rows[row][segments[row] == k].tolist()
            for row in range(len(rows))
            for k in range(1, int(segments[row].max()) + 1)
        )
        assert found == sorted(line[line != filler].tolist() for line in whole)
