import json
import os
import shlex
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from flan_moe.model import PRESETS, FlanMoEConfig
from flan_moe.model.cli import EXAMPLES, main


@pytest.fixture
def model_dir(sparse_model, tokenizer, tmp_path):
    import torch

    sparse_model(dtype=torch.float32, vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def printed_examples():
    return [line.strip() for line in EXAMPLES.splitlines() if line.startswith("  flan-moe-model")]


@pytest.mark.parametrize("example", printed_examples())
def test_the_examples_of_help_work_as_printed(example, model_dir, t5_dir, tmp_path, capsys):
    for name, path in (("MODEL", model_dir), ("T5", t5_dir), ("NEW", tmp_path / "new")):
        example = example.replace(f"${name}_DIR", str(path))
    command = shlex.split(example)
    assert command[0] == "flan-moe-model"
    assert main(command[1:]) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(("given", "policy"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_openmp_waits_passively_unless_told_otherwise(monkeypatch, given, policy):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    assert main(["info", "absent"]) == 2
    assert os.environ["OMP_WAIT_POLICY"] == policy


def test_info_prints_counts_and_costs(capsys):
    assert main(["info", "flan-switch-base-8"]) == 0
    out = capsys.readouterr().out
    assert "encoder: 12 layers; 8 experts, switch, in layers 1, 3, 5, 7, 9, 11" in out
    assert "619,339,008" in out


def rows(out, title):
    """The cells of the rows of a printed table that start with a title, thousands unseparated."""
    lines = [line.strip().replace(",", "") for line in out.splitlines()]
    return [line.removeprefix(title).split() for line in lines if line.startswith(f"{title} ")]


def test_info_prints_costs_as_published_and_memory(capsys):
    assert main(["info", "flan-st-32b", "--encoder-length", "2048"]) == 0
    out = capsys.readouterr().out
    assert "64 experts, top-2, in layers 3, 7, 11, 15, 19, 23, each before a dense network" in out
    assert rows(out, "total")[0] == ["269104613376"]
    assert rows(out, "router") == [["3932160"]]
    (costs,) = rows(out, "layers' weights (1)")
    assert [f"{float(cost):.1f}" for cost in costs] == ["30.7", "38.8", "34.7"]
    weights = 269_104_613_376 * 4 / 2**30
    adamw, adafactor = rows(out, "AdamW")[0], rows(out, "Adafactor")[0]
    assert [float(x) for x in adamw] == pytest.approx([k * weights for k in (1, 1, 2, 4)], abs=0.5)
    assert float(adafactor[2]) < 1 < float(adamw[2])
    assert float(rows(out, "float32")[0][0]) == pytest.approx(weights, abs=0.5)
    bfloat16 = [float(x) for x in rows(out, "bfloat16")[0]]
    cache = 24 * 2 * (2048 + 128) * 64 * 128 * 2 / 2**30
    assert bfloat16 == pytest.approx([weights / 2, cache], rel=1e-3)


def test_info_of_the_largest_model_takes_no_memory_and_imports_no_model():
    """Neither the modelling code of transformers nor the compiler of torch: seconds each."""
    code = (
        "import resource, sys, torch, transformers.configuration_utils, flan_moe.model.config\n"
        "from flan_moe.model.cli import main\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert main(['info', 'flan-switch-xxl']) == 0\n"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "assert grown < 200_000, f'{grown} KiB'\n"
        "for name in ('transformers.modeling_utils', 'torch._dynamo'):\n"
        "    assert name not in sys.modules, name\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "394,675,073,024" in done.stdout


def test_info_reads_a_saved_config(tmp_path, capsys):
    FlanMoEConfig(num_layers=2).save_pretrained(tmp_path)
    assert main(["info", str(tmp_path)]) == 0
    assert "encoder: 2 dense layers" in capsys.readouterr().out


def test_info_lists_all_presets(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for name in PRESETS:
        assert f"\n{name} " in out
    assert "flan-st-32b          269,104,613,376 34,733,459,456    3,932,160  30.7062" in out


def test_generate_answers_each_text_and_repeats_itself(model_dir, capsys):
    command = ["generate", str(model_dir), "--text", "Is 7 a number?", "--text", "yes", "--sample"]
    outs = []
    for seed in ("1", "1", "2"):
        assert main([*command, "--seed", seed, "--max-new-tokens", "12"]) == 0
        outs.append(capsys.readouterr().out)
    assert outs[0] == outs[1] != outs[2]
    assert len(outs[0].splitlines()) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected a preset (flan-moe-tiny"),
        ("{", "config.json: expected a JSON object"),
        ("[]", "config.json: expected a JSON object"),
        ("[" * 100_000, "config.json: expected a JSON object"),
        ('{"model_type": "t5"}', "model_type='t5': expected 'flan_moe'"),
        ('{"model_type": "flan_moe", "d_ff": -1}', "d_ff=-1: expected an integer of at least 1"),
        ('{"model_type": "flan_moe", "num_labels": "x"}', "config.json: TypeError("),
        ('{"model_type": "flan_moe", "num_layers": 1000000000}', "an integer of at most 10000"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path, capsys, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert main(["info", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_tokenizer_of_another_vocabulary_is_refused(model_dir, capsys):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(model_dir)
    assert main(["generate", str(model_dir), "--text", "a"]) == 2
    assert "the tokenizer has 12 tokens, the model a vocabulary of 11" in capsys.readouterr().err


def _edit(path, change):
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def _without(path, name):
    weights = load_file(path)
    del weights[name]
    save_file(weights, path, metadata={"format": "pt"})


def _spoil(path, name):
    weights = load_file(path)
    weights[name][0, 0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "model.safetensors").write_bytes(b"\0" * 9), "cannot load a model: Safet"),
        (lambda d: _edit(d / "config.json", {"d_model": 24}), "cannot load a model: "),
        (lambda d: _without(d / "model.safetensors", "lm_head.weight"), "1 weights are missing"),
        (lambda d: _edit(d / "config.json", {"encoder_router": None}), "weights are missing"),
        (
            lambda d: _edit(d / "config.json", {"num_decoder_layers": 1, "decoder_router": None}),
            "weights have no place in the model",
        ),
        (lambda d: (d / "tokenizer.json").write_text("{"), "cannot load a tokenizer: "),
        (lambda d: _spoil(d / "model.safetensors", "lm_head.weight"), "lm_head.weight holds NaN"),
    ],
)
def test_a_damaged_checkpoint_is_refused(model_dir, capsys, damage, message):
    damage(model_dir)
    assert main(["generate", str(model_dir), "--text", "a"]) == 2
    error = capsys.readouterr().err
    assert f"flan-moe-model: {model_dir}: " in error
    assert message in error


def test_a_device_that_torch_lacks_is_refused(model_dir, capsys):
    assert main(["generate", str(model_dir), "--text", "a", "--device", "abacus"]) == 2
    assert "--device 'abacus': expected one that torch can use" in capsys.readouterr().err


def test_a_seed_that_torch_cannot_take_is_refused(model_dir, capsys):
    with pytest.raises(SystemExit):
        main(["generate", str(model_dir), "--text", "a", "--seed", str(10**30)])
    assert "expected 0 to 2**63 - 1" in capsys.readouterr().err


def test_without_sample_nothing_is_sampled(model_dir, capsys):
    outs = []
    for settings in ({"do_sample": False}, {"do_sample": True, "temperature": 50.0}):
        (model_dir / "generation_config.json").unlink(missing_ok=True)
        GenerationConfig(
            **settings, eos_token_id=1, pad_token_id=0, decoder_start_token_id=0
        ).save_pretrained(model_dir)
        assert main(["generate", str(model_dir), "--text", "a", "--max-new-tokens", "12"]) == 0
        outs.append(capsys.readouterr().out)
    assert outs[0] == outs[1]


def test_an_answer_is_an_answer_whatever_the_checkpoint_wants_returned(model_dir, capsys):
    GenerationConfig(
        return_dict_in_generate=True, eos_token_id=1, pad_token_id=0, decoder_start_token_id=0
    ).save_pretrained(model_dir)
    assert main(["generate", str(model_dir), "--text", "a", "--max-new-tokens", "4"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_help_does_not_import_transformers():
    code = (
        "import sys, flan_moe.model.cli as cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit('transformers' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
