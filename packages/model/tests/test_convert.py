"""Conversion of whole checkpoints: round trips, logits, formats, and T5X names."""

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from flan_moe.model import FlanMoEConfig, FlanMoEForConditionalGeneration
from flan_moe.model.convert import convert, flan_moe_names, switch_names, t5_names
from flan_moe.model.convert.checkpoint import open_checkpoint
from flan_moe.model.convert.hf_configs import export_config, import_config
from flan_moe.model.convert.npz_source import NpzSource
from flan_moe.model.convert.t5x_names import t5x_links

SIZES = {"vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4}
VERSION_4 = transformers.__version__.startswith("4.57.")


def make_switch(**overrides):
    torch.manual_seed(0)
    config = SwitchTransformersConfig(
        **{
            **SIZES,
            "num_layers": 4,
            "num_decoder_layers": 4,
            "num_sparse_encoder_layers": 2,
            "num_sparse_decoder_layers": 2,
            "num_experts": 4,
            "expert_capacity": 17,
            "dropout_rate": 0.05,
            "router_jitter_noise": 0.02,
            "decoder_start_token_id": 0,
            **overrides,
        }
    )
    model = SwitchTransformersForConditionalGeneration(config).eval()
    for name, weight in model.named_parameters():
        if "router" in name:
            torch.nn.init.normal_(weight, std=0.3)  # use all experts
    return model


def make_t5(activation="gated-gelu", tied=False):
    torch.manual_seed(0)
    config = T5Config(
        **SIZES,
        num_layers=3,
        num_decoder_layers=2,
        feed_forward_proj=activation,
        tie_word_embeddings=tied,
        decoder_start_token_id=0,
        dropout_rate=0.0,
    )
    model = T5ForConditionalGeneration(config).eval()
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(torch.randn(61, 32) * 0.3)
    return model


def save(model, path, files="safetensors"):
    """As one safetensors file, several, one pickle, or several."""
    if files == "safetensors":
        model.save_pretrained(path)
    elif files == "shards":
        model.save_pretrained(path, max_shard_size="60KB")
        assert len(list(path.glob("model-*.safetensors"))) > 2
    else:
        model.save_pretrained(path)
        weights = {**load_file(path / "model.safetensors")}
        (path / "model.safetensors").unlink()
        names = sorted(weights)
        halves = [names] if files == "pickle" else [names[::2], names[1::2]]
        index = {}
        for number, half in enumerate(halves):
            file = "pytorch_model.bin"
            if files == "pickles":
                file = f"pytorch_model-{number + 1:05}-of-00002.bin"
            torch.save({name: weights[name] for name in half}, path / file)
            index |= dict.fromkeys(half, file)
        if files == "pickles":
            (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    return path


def all_weights(path):
    return {k: v for file in path.glob("*.safetensors") for k, v in load_file(file).items()}


def assert_equal_weights(actual, expected):
    assert actual.keys() == expected.keys()
    for name, weight in expected.items():
        assert actual[name].dtype == weight.dtype, name
        assert torch.equal(actual[name], weight), name


def without_copies(state, tied=True):
    """What a file holds: tied weights once."""
    copies = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    if tied:
        copies.add("lm_head.weight")
    return {name: weight for name, weight in state.items() if name not in copies}


IGNORED = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}


def comparable(config):
    return {k: v for k, v in config.to_dict().items() if k not in IGNORED}


@pytest.mark.parametrize("files", ["safetensors", "shards", "pickle", "pickles"])
def test_switch_there_and_back_is_bit_equal(tmp_path, files):
    switch = make_switch()
    save(switch, tmp_path / "theirs", files)
    done = convert(tmp_path / "theirs", tmp_path / "ours", shard_bytes=50_000)
    assert done.source_layout == "hf-switch"
    assert "expert_capacity=17" in done.notes[0]
    assert len(list((tmp_path / "ours").glob("model-*.safetensors"))) > 2
    convert(tmp_path / "ours", tmp_path / "back", to="hf-switch")
    assert_equal_weights(all_weights(tmp_path / "back"), without_copies(switch.state_dict()))
    back = SwitchTransformersForConditionalGeneration.from_pretrained(tmp_path / "back")
    assert comparable(back.config) == comparable(switch.config)
    for name, weight in switch.state_dict().items():
        assert torch.equal(back.state_dict()[name], weight), name


@pytest.mark.parametrize(
    ("activation", "tied"),
    [("gated-gelu", False), ("relu", True), ("gated-silu", False), ("gelu_new", True)],
)
def test_t5_there_and_back_is_bit_equal(tmp_path, activation, tied):
    t5 = make_t5(activation, tied)
    save(t5, tmp_path / "theirs")
    done = convert(tmp_path / "theirs", tmp_path / "ours")
    assert done.source_layout == "hf-t5"
    convert(tmp_path / "ours", tmp_path / "back", to="hf-t5")
    expected = without_copies(t5.state_dict(), tied)
    assert_equal_weights(all_weights(tmp_path / "back"), expected)
    back = T5Config.from_pretrained(tmp_path / "back")
    assert comparable(back) == comparable(T5Config.from_pretrained(tmp_path / "theirs"))


def test_half_precision_stays_as_it_is(tmp_path):
    t5 = make_t5().to(torch.bfloat16)
    save(t5, tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours")
    assert json.loads((tmp_path / "ours/config.json").read_text())["dtype"] == "bfloat16"
    convert(tmp_path / "ours", tmp_path / "back", to="hf-t5")
    assert_equal_weights(all_weights(tmp_path / "back"), without_copies(t5.state_dict(), False))


@pytest.mark.parametrize(
    ("make", "sides"),
    [
        pytest.param(lambda: make_t5("gated-gelu", tied=False), ("right", "left"), id="t5-v1.1"),
        pytest.param(lambda: make_t5("relu", tied=True), ("right", "left"), id="t5-original"),
        # Routes padding, and so counts it against capacity: 64 is more than a row has tokens.
        pytest.param(lambda: make_switch(expert_capacity=64), ("right", "left"), id="switch"),
    ],
)
def test_a_converted_checkpoint_has_the_logits_of_its_source(tmp_path, batch, make, sides):
    theirs = make()
    if "Switch" in type(theirs).__name__ and not VERSION_4:
        pytest.skip("the reference is the Switch of transformers 4.57")
    save(theirs, tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours")
    ours = FlanMoEForConditionalGeneration.from_pretrained(tmp_path / "ours").eval()
    decoder_ids = torch.randint(2, 61, (3, 6), generator=torch.Generator().manual_seed(1))
    for side in sides:
        mask, ids = batch["attention_mask"], batch["input_ids"]
        if side == "left":
            mask, ids = mask.flip(1), ids.flip(1)
        inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": decoder_ids}
        with torch.no_grad():
            expected = theirs(**inputs).logits
            found = ours(**inputs).logits
        assert expected.std() > 0.05
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def flax_arrays(model):
    """A flat T5X checkpoint of one of transformers' models, written down independently."""
    state = {name: weight.detach().numpy() for name, weight in model.state_dict().items()}
    arrays = {"target/token_embedder/embedding": state["shared.weight"]}
    if not model.config.tie_word_embeddings or "T5" in type(model).__name__:
        arrays["target/decoder/logits_dense/kernel"] = state["lm_head.weight"].T
    for stack in ("encoder", "decoder"):
        first = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        arrays[f"target/{stack}/relpos_bias/rel_embedding"] = state[first].T
        arrays[f"target/{stack}/{stack}_norm/scale"] = state[f"{stack}.final_layer_norm.weight"]
        depth = len(getattr(model, stack).block)
        for i in range(depth):
            ours, theirs = f"target/{stack}/layers_{i}", f"{stack}.block.{i}.layer"
            parts = [("attention", "pre_attention_layer_norm", "0", "SelfAttention")]
            if stack == "decoder":
                parts = [
                    ("self_attention", "pre_self_attention_layer_norm", "0", "SelfAttention"),
                    (
                        "encoder_decoder_attention",
                        "pre_cross_attention_layer_norm",
                        "1",
                        "EncDecAttention",
                    ),
                ]
            for name, norm, index, their_name in parts:
                arrays[f"{ours}/{norm}/scale"] = state[f"{theirs}.{index}.layer_norm.weight"]
                for kernel in ("query", "key", "value", "out"):
                    letter = "o" if kernel == "out" else kernel[0]
                    weight = state[f"{theirs}.{index}.{their_name}.{letter}.weight"]
                    arrays[f"{ours}/{name}/{kernel}/kernel"] = weight.T
            ff = f"{theirs}.{len(parts)}"
            arrays[f"{ours}/pre_mlp_layer_norm/scale"] = state[f"{ff}.layer_norm.weight"]
            router = f"{ff}.mlp.router.classifier.weight"
            if router in state:
                arrays[f"{ours}/mlp/router/router_weights/w/kernel"] = state[router].T
                for matrix in ("wi", "wo"):
                    arrays[f"{ours}/mlp/expert/{matrix}/kernel"] = np.stack(
                        [state[f"{ff}.mlp.experts.expert_{e}.{matrix}.weight"].T for e in range(4)]
                    )
                continue
            dense = "DenseReluDense" if f"{ff}.DenseReluDense.wo.weight" in state else "mlp"
            for matrix in ("wi", "wi_0", "wi_1", "wo"):
                if f"{ff}.{dense}.{matrix}.weight" in state:
                    weight = state[f"{ff}.{dense}.{matrix}.weight"]
                    arrays[f"{ours}/mlp/{matrix}/kernel"] = weight.T
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


@pytest.mark.parametrize("kind", ["npz", "compressed npz", "safetensors"])
@pytest.mark.parametrize("make", [make_t5, make_switch])
def test_t5x_arrays_give_the_weights_that_transformers_has(tmp_path, make, kind):
    theirs = make()
    save(theirs, tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "expected")
    config = FlanMoEConfig.from_pretrained(tmp_path / "expected")
    arrays = flax_arrays(theirs) | {"state/step": np.asarray(7, dtype=np.int32)}
    file = tmp_path / ("flat.safetensors" if kind == "safetensors" else "flat.npz")
    if kind == "safetensors":
        save_file({k: torch.from_numpy(v.copy()) for k, v in arrays.items()}, file)
    else:
        (np.savez if kind == "npz" else np.savez_compressed)(file, **arrays)
    done = convert(file, tmp_path / "ours", config=config)
    assert done.source_layout == "t5x"
    assert done.notes == ("left out 1 arrays that are not under target/",)
    assert_equal_weights(all_weights(tmp_path / "ours"), all_weights(tmp_path / "expected"))


def test_gated_experts_of_t5x(sparse_config, tmp_path):
    """flaxformer's wi_0 is the activated gate, the first half of our columns."""
    config = sparse_config(activation="geglu")
    torch.manual_seed(0)
    model = FlanMoEForConditionalGeneration(config)
    state = model.state_dict()
    arrays = {}
    for link in t5x_links(config):
        region = state[link.target.name][link.target.index].numpy()
        region = region.T if link.transposed else region
        if link.source.index:
            arrays.setdefault(link.source.name, []).append(region)
        else:
            arrays[link.source.name] = region
    arrays = {k: np.stack(v) if isinstance(v, list) else v for k, v in arrays.items()}
    name = "target/encoder/layers_1/mlp/expert"
    wi = state["encoder.layers.1.feed_forward.experts.wi"]
    assert np.array_equal(arrays[f"{name}/wi_0/kernel"], wi[:, :, :48].numpy())
    assert np.array_equal(arrays[f"{name}/wi_1/kernel"], wi[:, :, 48:].numpy())
    np.savez(tmp_path / "flat.npz", **{k: np.ascontiguousarray(v) for k, v in arrays.items()})
    convert(tmp_path / "flat.npz", tmp_path / "ours", config=config)
    assert_equal_weights(all_weights(tmp_path / "ours"), state)


def test_names_in_memory_are_those_of_the_models():
    switch = make_switch()
    config = FlanMoEConfig(
        **SIZES,
        num_layers=4,
        activation="relu",
        tie_word_embeddings=True,
        encoder_router={"name": "switch", "num_experts": 4},
        decoder_router={"name": "switch", "num_experts": 4},
    )
    ours = FlanMoEForConditionalGeneration(config)
    state = flan_moe_names(config, switch.state_dict(), "hf-switch")
    ours.load_state_dict(state | {"lm_head.weight": state["shared.weight"]})
    assert_equal_weights(switch_names(ours), without_copies(switch.state_dict()))
    t5 = make_t5()
    dense = FlanMoEConfig(**SIZES, num_layers=3, num_decoder_layers=2)
    model = FlanMoEForConditionalGeneration(dense)
    model.load_state_dict(flan_moe_names(dense, t5.state_dict(), "hf-t5"))
    assert_equal_weights(t5_names(model), without_copies(t5.state_dict(), False))


def test_tokenizer_and_generation_settings_come_along(tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    save(make_t5(), tmp_path / "theirs")
    words = {"<pad>": 0, "</s>": 1, "yes": 2}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<pad>")), pad_token="<pad>"
    ).save_pretrained(tmp_path / "theirs")
    done = convert(tmp_path / "theirs", tmp_path / "ours")
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= set(done.copied)
    assert AutoTokenizer.from_pretrained(tmp_path / "ours")("yes")["input_ids"] == [2]


def test_the_first_t5_checkpoints_have_copies_and_a_weight_that_nothing_uses(tmp_path):
    t5 = make_t5("relu", tied=True)
    save(t5, tmp_path / "theirs")
    state = {k: v.clone() for k, v in t5.state_dict().items()}
    unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    state[unused] = torch.zeros(32, 4)
    del state["shared.weight"]  # one of the copies stands for it
    save_file(state, tmp_path / "theirs/model.safetensors", metadata={"format": "pt"})
    done = convert(tmp_path / "theirs", tmp_path / "ours")
    assert done.notes == (f"left out {unused}, which nothing uses",)
    assert torch.equal(all_weights(tmp_path / "ours")["shared.weight"], t5.shared.weight)


# Not ru_maxrss, which a process has from its parent.
STREAM = """
import sys
from flan_moe.model.convert import convert
def peak():
    return next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
start = peak()
convert(sys.argv[1], sys.argv[2], to=sys.argv[3], shard_bytes=2**29)
print(start, peak())
"""


def peak_of_conversion(source, target, to):
    """Peak resident memory in MiB: after the imports, and over everything."""
    run = subprocess.run(
        [sys.executable, "-c", STREAM, str(source), str(target), to],
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(kib) / 1024 for kib in run.stdout.split()]


def write_large_switch(path, num_experts):
    """A checkpoint in files of half a gigabyte; returns the bytes of its weights."""
    config = SwitchTransformersConfig(
        vocab_size=8000,
        d_model=1024,
        d_ff=4096,
        num_heads=16,
        num_layers=2,
        num_decoder_layers=2,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
        num_experts=num_experts,
        decoder_start_token_id=0,
    )
    path.mkdir()
    config.save_pretrained(path)
    with torch.device("meta"):
        model = SwitchTransformersForConditionalGeneration(config)
    shapes = {k: v.shape for k, v in model.state_dict().items() if "embed_tokens" not in k}
    del shapes["lm_head.weight"]
    files, batch, size, total = {}, {}, 0, 0
    generator = torch.Generator().manual_seed(0)

    def flush():
        file = f"model-{len(set(files.values())) + 1:05}.safetensors"
        save_file(batch, path / file, metadata={"format": "pt"})
        files.update(dict.fromkeys(batch, file))
        batch.clear()

    for name, shape in shapes.items():
        batch[name] = torch.empty(shape).fill_(torch.rand((), generator=generator))
        size += batch[name].nbytes
        total += batch[name].nbytes
        if size > 2**29:
            flush()
            size = 0
    flush()
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return total


def test_memory_is_that_of_a_part_not_of_the_model(tmp_path):
    total = write_large_switch(tmp_path / "theirs", num_experts=2)
    assert total > 3e8
    start, peak = peak_of_conversion(tmp_path / "theirs", tmp_path / "ours", "flan-moe")
    assert (peak - start) * 2**20 < total / 2


@pytest.mark.slow
def test_two_gigabytes_convert_in_less_than_one(tmp_path):
    total = write_large_switch(tmp_path / "theirs", num_experts=28)
    assert total > 2e9
    _, peak = peak_of_conversion(tmp_path / "theirs", tmp_path / "ours", "flan-moe")
    assert peak < 1000
    _, peak = peak_of_conversion(tmp_path / "ours", tmp_path / "back", "hf-switch")
    assert peak < 1000
    there, back = open_checkpoint(tmp_path / "theirs"), open_checkpoint(tmp_path / "back")
    assert there.tensors == back.tensors
    for name in there.tensors:
        assert torch.equal(there.read(name), back.read(name)), name


def test_npz_members_are_what_numpy_reads(tmp_path):
    arrays = {"a/b": np.arange(24.0).reshape(4, 3, 2), "s": np.asarray(3, dtype=np.int64)}
    for write in (np.savez, np.savez_compressed):
        write(tmp_path / "x.npz", **arrays)
        source = NpzSource(tmp_path / "x.npz")
        for index in [(), (2,), (slice(1, 3),), (0, slice(1, 2)), (slice(0, 4), 1)]:
            assert np.array_equal(source.read("a/b", index).numpy(), arrays["a/b"][index])
        assert source.read("s").item() == 3
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        assert "a/b.npy" in archive.namelist()


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4, 8])
def test_sparse_layers_are_those_of_transformers_or_refused(num_layers):
    """For every number of sparse layers: the config agrees with the model, and comes back."""
    regular = [list(range(every - 1, num_layers, every)) for every in range(1, num_layers + 1)]
    for num_sparse in range(num_layers + 1):
        theirs = SwitchTransformersConfig(
            **SIZES,
            num_layers=num_layers,
            num_decoder_layers=num_layers,
            num_sparse_encoder_layers=num_sparse,
            num_sparse_decoder_layers=num_sparse,
            decoder_start_token_id=0,
            architectures=["SwitchTransformersForConditionalGeneration"],
        )
        with torch.device("meta"):
            names = SwitchTransformersForConditionalGeneration(theirs).encoder.state_dict()
        sparse = sorted({int(name.split(".")[1]) for name in names if "router" in name})
        values = json.loads(theirs.to_json_string(use_diff=False))
        if sparse not in regular:
            with pytest.raises(ValueError, match="expected every n-th layer"):
                import_config(values, "config.json")
            continue
        ours = import_config(values, "config.json")
        assert [i for i in range(num_layers) if ours.is_sparse("encoder", i)] == sparse
        back = export_config(ours, "hf-switch", values, "config.json")
        assert comparable(SwitchTransformersConfig(**back)) == comparable(theirs)
        fresh = SwitchTransformersConfig(**export_config(ours, "hf-switch", {}, "config.json"))
        with torch.device("meta"):
            rebuilt = SwitchTransformersForConditionalGeneration(fresh).encoder.state_dict()
        assert {name for name in rebuilt if "router" in name} == {
            name for name in names if "router" in name
        }


def test_weights_are_those_that_transformers_would_load(t5_dir, tmp_path):
    """A directory that was saved in shards before keeps their index beside the new file."""
    index = {"weight_map": {"shared.weight": "model-00001-of-00002.safetensors"}}
    (t5_dir / "model.safetensors.index.json").write_text(json.dumps(index))
    convert(t5_dir, tmp_path / "ours")
    theirs = load_file(t5_dir / "model.safetensors")["shared.weight"]
    assert torch.equal(load_file(tmp_path / "ours" / "model.safetensors")["shared.weight"], theirs)
