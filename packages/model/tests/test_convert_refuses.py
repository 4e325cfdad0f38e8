"""Checkpoints that cannot be converted are refused by name, and nothing is left behind."""

import json
import os
import pickle
import resource
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from flan_moe.model import FlanMoEConfig, FlanMoEForConditionalGeneration
from flan_moe.model.cli import main
from flan_moe.model.convert import convert
from flan_moe.model.convert.region import source_shapes
from flan_moe.model.convert.t5x_names import t5x_links
from flan_moe.model.convert.weights import weight_shapes

SIZES = {"vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4}


def weights_of(path):
    return load_file(path / "model.safetensors")


def rewrite(path, **changed):
    weights = weights_of(path)
    for name, weight in changed.items():
        weights.pop(name, None)
        if weight is not None:
            weights[name] = weight
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def edit(path, **changed):
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def as_pickle(path, value=None):
    state = weights_of(path) if value is None else value
    (path / "model.safetensors").unlink()
    torch.save(state, path / "pytorch_model.bin")


def with_index(path, weight_map):
    weights = weights_of(path)
    (path / "model.safetensors").rename(path / "shard.safetensors")
    weight_map = dict.fromkeys(weights, "shard.safetensors") | weight_map
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))


def no_storage(path):
    """A pickle whose first persistent id, a storage, is a plain string."""
    as_pickle(path)
    file = path / "pytorch_model.bin"
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in entries if name.endswith("data.pkl"))
    entries[name] = b"\x80\x02X\x01\x00\x00\x00aQ."
    with zipfile.ZipFile(file, "w") as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)


def truncate(file, keep):
    os.truncate(file, keep if keep > 0 else file.stat().st_size + keep)


class Harmful:
    """Makes a directory when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


Q = "encoder.block.0.layer.0.SelfAttention.q.weight"
EXTRA = "decoder.block.1.layer.2.DenseReluDense.wi_2.weight"

DAMAGE = {
    "another architecture": (lambda d: edit(d, model_type="bart"), "model_type='bart': expected"),
    "architecture is no name": (
        lambda d: edit(d, model_type=["t5"]),
        "model_type=['t5']: expected",
    ),
    "activation is no name": (
        lambda d: edit(d, feed_forward_proj=["relu"]),
        "feed_forward_proj=['relu']: expected",
    ),
    "no architecture": (lambda d: edit(d, model_type=None), "model_type=None: expected"),
    "exact GELU": (
        lambda d: edit(d, feed_forward_proj="gelu"),
        "feed_forward_proj='gelu': expected one of 'relu'",
    ),
    "contradicting activation": (
        lambda d: edit(d, dense_act_fn="relu", feed_forward_proj="gated-gelu"),
        "dense_act_fn='relu': expected 'gelu_new'",
    ),
    "contradicting gate": (
        lambda d: edit(d, is_gated_act=False),
        "is_gated_act=False: expected True for 'gated-gelu'",
    ),
    "impossible size": (lambda d: edit(d, d_model=-1), "config.json: FlanMoEConfig: d_model=-1"),
    "config is no JSON": (
        lambda d: (d / "config.json").write_text("{"),
        "config.json: expected a JSON object",
    ),
    "missing tensor": (lambda d: rewrite(d, **{Q: None}), f"1 tensor is missing: {Q}"),
    "extra tensor": (
        lambda d: rewrite(d, **{EXTRA: torch.zeros(3)}),
        f"1 tensor has no place: {EXTRA}",
    ),
    "shape": (
        lambda d: rewrite(d, **{Q: torch.zeros(32, 31)}),
        f"{Q} has shape (32, 31), expected (32, 32)",
    ),
    "depth": (lambda d: edit(d, num_layers=1), "tensors have no place: encoder.block.1."),
    "mixed dtypes in one network": (
        lambda d: rewrite(
            d,
            **{
                "encoder.block.0.layer.1.DenseReluDense.wi_1.weight": torch.zeros(
                    48, 32, dtype=torch.float16
                )
            },
        ),
        "have different dtypes: torch.float16, torch.float32",
    ),
    "quantised weights": (
        lambda d: rewrite(d, **{Q: torch.zeros(32, 32, dtype=torch.int8)}),
        f"{Q} is torch.int8; expected one of float64, float32, float16, bfloat16",
    ),
    "pickle of narrow weights": (
        lambda d: as_pickle(d, {n: w.to(torch.float8_e4m3fn) for n, w in weights_of(d).items()}),
        "is torch.float8_e4m3fn",
    ),
    "name that commands a terminal": (
        lambda d: rewrite(d, **{"\x1b[31mred": torch.zeros(3)}),
        "1 tensor has no place: '\\x1b[31mred'",
    ),
    "more layers than could be": (
        lambda d: edit(d, num_layers=10**9),
        "num_layers=1000000000: expected an integer of at most 10000",
    ),
    "pickle of no storage": (
        lambda d: no_storage(d),
        "does not load with torch.load(weights_only=True)",
    ),
    "copy of the embedding differs": (
        lambda d: rewrite(d, **{"encoder.embed_tokens.weight": torch.zeros(61, 32)}),
        "encoder.embed_tokens.weight differs from shared.weight",
    ),
    "truncated data": (
        lambda d: truncate(d / "model.safetensors", -5),
        "model.safetensors: has",
    ),
    "truncated header": (
        lambda d: truncate(d / "model.safetensors", 100),
        "hold no header",
    ),
    "empty file": (
        lambda d: (d / "model.safetensors").write_bytes(b""),
        "its 0 bytes hold no header",
    ),
    "no weights": (
        lambda d: (d / "model.safetensors").unlink(),
        "expected model.safetensors or pytorch_model.bin",
    ),
    "pickle that runs code": (
        lambda d: as_pickle(d, {"x": Harmful(d.parent / "harm")}),
        "does not load with torch.load(weights_only=True)",
    ),
    "raw pickle": (
        lambda d: (
            (d / "model.safetensors").unlink(),
            (d / "pytorch_model.bin").write_bytes(pickle.dumps({"x": 1}, protocol=2)),
        ),
        "does not load with torch.load(weights_only=True)",
    ),
    "truncated pickle": (
        lambda d: (as_pickle(d), truncate(d / "pytorch_model.bin", 5000)),
        "does not load with torch.load(weights_only=True)",
    ),
    "pickle of something else": (
        lambda d: as_pickle(d, {"epoch": 3}),
        "'epoch' is a int; expected tensors by name",
    ),
    "index names an absent file": (
        lambda d: with_index(d, {Q: "gone.safetensors"}),
        "names files that are not there: gone.safetensors",
    ),
    "index leaves the directory": (
        lambda d: with_index(d, {Q: "../t5/shard.safetensors"}),
        "names ../t5/shard.safetensors; expected plain names",
    ),
    "index names an absolute path": (
        lambda d: with_index(d, {Q: "/etc/passwd"}),
        "names /etc/passwd; expected plain names",
    ),
    "index names an absent tensor": (
        lambda d: with_index(d, {"nothing": "shard.safetensors"}),
        "names tensors that no file has: nothing",
    ),
    "index is no index": (
        lambda d: (with_index(d, {}), (d / "model.safetensors.index.json").write_text("[]")),
        "index.json: expected a JSON object, found a list",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_checkpoint_is_refused_and_leaves_nothing(t5_dir, capsys, case):
    damage, message = DAMAGE[case]
    damage(t5_dir)
    assert main(["convert", str(t5_dir), str(t5_dir.parent / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(t5_dir) in error
    assert [entry.name for entry in t5_dir.parent.iterdir()] == ["t5"]


SPARSE = {
    "router_bias": ({"router_bias": True}, "router_bias=True: expected false"),
    "every third layer": (
        {"num_sparse_encoder_layers": 2, "num_layers": 6, "num_decoder_layers": 6},
        "sparse layers [1, 4] of the encoder and [1, 3, 5] of the decoder",
    ),
    "explicit distance": (
        {"encoder_sparse_step": 3},
        "sparse layers [1] of the encoder and [1, 3] of the decoder",
    ),
    "distance is no number": ({"decoder_sparse_step": "2"}, "decoder_sparse_step='2': expected"),
    "activation": ({"dense_act_fn": "silu"}, "dense_act_fn='silu': expected one of 'relu'"),
    "no number": ({"num_layers": "4"}, "num_layers='4': expected an integer"),
    "experts": ({"num_experts": 0}, "num_experts"),
}


@pytest.mark.parametrize("case", SPARSE)
def test_a_switch_that_is_none_of_ours_is_refused(tmp_path, case):
    changed, message = SPARSE[case]
    values = {
        **SIZES,
        "model_type": "switch_transformers",
        "num_layers": 4,
        "num_decoder_layers": 4,
        "num_sparse_encoder_layers": 2,
        "num_sparse_decoder_layers": 3 if "num_layers" in changed else 2,
        **changed,
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError) as error:
        convert(tmp_path, tmp_path / "out")
    assert message in str(error.value)


SWITCH = {"activation": "relu", "tie_word_embeddings": True}
UNLIKE_SWITCH = {
    "gated": ({"activation": "geglu"}, "activation='geglu': expected one of 'relu', 'gelu'"),
    "top-2": (
        {"encoder_router": {"name": "top_k", "num_experts": 4, "top_k": 2}},
        "encoder_router.top_k=2: expected 1 as in Switch",
    ),
    "renormalised": (
        {
            "decoder_router": {
                "name": "top_k",
                "num_experts": 4,
                "top_k": 1,
                "renormalise": "before_drop",
            }
        },
        "decoder_router.renormalise='before_drop': expected 'never'",
    ),
    "expert choice": (
        {"encoder_router": {"name": "expert_choice", "num_experts": 4}},
        "encoder_router.selection='expert_choice'",
    ),
    "dense encoder": ({"encoder_router": None}, "encoder_router=None: expected a router"),
    "unequal experts": (
        {"decoder_router": {"name": "switch", "num_experts": 8}},
        "*_router.num_experts=(4, 8): expected the same",
    ),
    "extra network": ({"extra_feed_forward": True}, "extra_feed_forward=True: expected false"),
    "narrow experts": ({"expert_d_ff": 8}, "expert_d_ff=8: expected d_ff, 48, as in Switch"),
    "every fourth layer": ({"sparse_every": 4}, "sparse layers [3] of the encoder; Switch can"),
}


@pytest.mark.parametrize("case", UNLIKE_SWITCH)
def test_what_switch_cannot_represent_is_named(sparse_config, tmp_path, case):
    changed, message = UNLIKE_SWITCH[case]
    router = {"name": "switch", "num_experts": 4}
    config = sparse_config(
        **{**SWITCH, "num_decoder_layers": 4, "encoder_router": router, "decoder_router": router}
        | changed
    )
    FlanMoEForConditionalGeneration(config).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError) as error:
        convert(tmp_path / "ours", tmp_path / "out", to="hf-switch")
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_what_t5_cannot_represent_is_named(sparse_config, tmp_path):
    FlanMoEForConditionalGeneration(sparse_config()).save_pretrained(tmp_path / "sparse")
    with pytest.raises(ValueError, match=r"encoder_router='top_k': expected None: T5 has no exper"):
        convert(tmp_path / "sparse", tmp_path / "out", to="hf-t5")
    dense = FlanMoEConfig(**SIZES, num_layers=1, dense_ff_widths={"encoder": [8]})
    FlanMoEForConditionalGeneration(dense).save_pretrained(tmp_path / "dense")
    with pytest.raises(ValueError, match=r"dense_ff_widths=.*: expected 48 for all"):
        convert(tmp_path / "dense", tmp_path / "out", to="hf-t5")


def test_between_two_foreign_layouts_there_is_no_way(t5_dir, tmp_path):
    with pytest.raises(ValueError, match="is hf-t5; convert it to flan-moe first"):
        convert(t5_dir, tmp_path / "out", to="hf-switch")
    with pytest.raises(ValueError, match="is hf-t5 already"):
        convert(t5_dir, tmp_path / "out", to="hf-t5")


def test_an_existing_output_is_left_as_it_is(t5_dir, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="exists; expected the name of a new directory"):
        convert(t5_dir, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    with pytest.raises(FileNotFoundError, match="no such directory"):
        convert(t5_dir, tmp_path / "absent" / "out")


def test_a_full_disk_is_noticed_before_writing(t5_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100}))
    with pytest.raises(OSError, match="but only 100 are free"):
        convert(t5_dir, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["t5"]


def test_a_failing_write_says_where_and_leaves_nothing(t5_dir, tmp_path):
    """A disk that fills up, here a limit on the size of files."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*/out'"):
            convert(t5_dir, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [entry.name for entry in tmp_path.iterdir()] == ["t5"]


def test_a_damaged_npz_is_refused(tmp_path):
    config = FlanMoEConfig(**SIZES, num_layers=1)
    shapes = source_shapes(t5x_links(config), weight_shapes(config))
    arrays = {name: np.random.default_rng(0).normal(size=s) for name, s in shapes.items()}
    np.savez_compressed(tmp_path / "whole.npz", **arrays)
    content = (tmp_path / "whole.npz").read_bytes()
    for start in range(100, len(content) - 5000, len(content) // 40):
        damaged = content[:start] + b"\xff" * 40 + content[start + 40 :]
        (tmp_path / "damaged.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged\.npz: "):
            convert(tmp_path / "damaged.npz", tmp_path / "out", config=config)
    assert {entry.name for entry in tmp_path.iterdir()} == {"whole.npz", "damaged.npz"}


def test_t5x_needs_a_configuration_and_one_flat_file(tmp_path):
    np.savez(tmp_path / "flat.npz", **{"target/x": np.zeros(3)})
    with pytest.raises(ValueError, match="T5X arrays come without a configuration"):
        convert(tmp_path / "flat.npz", tmp_path / "out")
    with pytest.raises(
        ValueError, match=r"are missing: target/.*; 1 tensor has no place: target/x"
    ):
        convert(tmp_path / "flat.npz", tmp_path / "out", config=FlanMoEConfig(**SIZES))
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="or a file of T5X arrays named target/"):
        convert(tmp_path / "other.npz", tmp_path / "out")
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="x is dtype"):
        convert(tmp_path / "objects.npz", tmp_path / "out")
    (tmp_path / "broken.npz").write_bytes((tmp_path / "flat.npz").read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"expected a \.npz file"):
        convert(tmp_path / "broken.npz", tmp_path / "out")
    (tmp_path / "checkpoint_1000").mkdir()
    (tmp_path / "checkpoint_1000" / "checkpoint").write_bytes(b"\x80")
    with pytest.raises(FileNotFoundError, match=r"export it as one flat \.npz or \.safetensors"):
        convert(tmp_path / "checkpoint_1000", tmp_path / "out")


def test_names_of_two_architectures_do_not_mix(t5_dir, tmp_path):
    edit(t5_dir, model_type="switch_transformers", num_decoder_layers=2, dense_act_fn="relu")
    with pytest.raises(ValueError, match=r"tensors are missing: .*mlp.*no place: .*DenseReluDense"):
        convert(t5_dir, tmp_path / "out")


KILLED = """
import sys, time
from flan_moe.model.convert import convert
def slow(done, total):
    print("writing", flush=True)
    time.sleep(30)
convert(sys.argv[1], sys.argv[2], progress=slow)
"""


def test_an_interrupted_conversion_leaves_nothing(t5_dir, tmp_path):
    def interrupt(done, total):
        assert list(tmp_path.glob(".out.*.partial"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(t5_dir, tmp_path / "out", progress=interrupt)
    assert [entry.name for entry in tmp_path.iterdir()] == ["t5"]


def test_a_killed_conversion_leaves_nothing_that_looks_whole(t5_dir, tmp_path):
    run = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(t5_dir), str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert run.stdout.readline() == "writing\n"
    run.kill()
    run.communicate(timeout=20)
    (left,) = (entry for entry in tmp_path.iterdir() if entry.name != "t5")
    assert left.name.startswith(".out.")
    assert left.name.endswith(".partial")
    assert not (left / "config.json").exists()
