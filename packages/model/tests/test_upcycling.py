"""Sparse upcycling: what changes at initialisation, and what does not."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from flan_moe.model import FlanMoEConfig, FlanMoEForConditionalGeneration, dense_twin
from flan_moe.model.cli import main
from flan_moe.model.convert import (
    UpcycleOptions,
    convert,
    preset_routing,
    upcycle,
    upcycle_model,
    upcycled_config,
)
from flan_moe.model.convert.output_change import change, sample_logits

SIZES = {"vocab_size": 101, "d_model": 48, "d_kv": 12, "d_ff": 96, "num_heads": 4}


def make_dense(seed=0, **overrides):
    """With a head as transformers initialises it, which makes logits large."""
    torch.manual_seed(seed)
    config = FlanMoEConfig(**{**SIZES, "num_layers": 4, "dropout_rate": 0.0, **overrides})
    model = FlanMoEForConditionalGeneration(config).eval()
    if not config.tie_word_embeddings:
        torch.nn.init.normal_(model.lm_head.weight)
    return model


@pytest.fixture(scope="module")
def dense():
    return make_dense()


def both(**router):
    return {"encoder_router": router, "decoder_router": router}


def logit_change(dense, options=None, **routing):
    sparse = upcycle_model(dense, upcycled_config(dense.config, **routing), options)
    return change(sample_logits(dense), sample_logits(sparse))


def expert_choice(factor, renormalise="never"):
    """In the encoder; the decoder, which may not look ahead, is exactly the dense one."""
    return {
        "encoder_router": {
            "name": "expert_choice",
            "num_experts": 8,
            "capacity_factor": factor,
            "renormalise": renormalise,
        },
        "decoder_router": None,
    }


# The table of research for a T5 v1.1 with eight experts in every other layer.
TABLE = {
    "top-2, renormalised": both(name="top_k", num_experts=8, top_k=2, renormalise="before_drop"),
    "top-1, renormalised": both(name="top_k", num_experts=8, top_k=1, renormalise="before_drop"),
    "top-1, raw": both(name="switch", num_experts=8),
    "top-2, raw": both(name="top_k", num_experts=8, top_k=2),
    "expert choice 2, raw": expert_choice(2.0),
    "expert choice 2, renormalised": expert_choice(2.0, "after_drop"),
    "expert choice E, renormalised": expert_choice(8.0, "after_drop"),
}


def test_what_each_router_does_to_the_output_at_initialisation(dense):
    found = {name: logit_change(dense, **routing) for name, routing in TABLE.items()}
    largest = {name: row.largest for name, row in found.items()}
    scale = found["top-1, raw"].logit_scale
    assert 10 < scale < 40
    for name in ("top-2, renormalised", "top-1, renormalised", "expert choice E, renormalised"):
        assert largest[name] < 2e-6 * scale, name
    for name in ("top-1, raw", "top-2, raw", "expert choice 2, raw"):
        assert largest[name] > 0.1 * scale, name
    assert found["top-1, raw"].mean > found["top-2, raw"].mean
    # Tokens that no expert picked lose their network; the others keep it exactly.
    assert 0.01 * scale < largest["expert choice 2, renormalised"] < largest["expert choice 2, raw"]


def test_a_renormalised_top_1_gives_the_router_no_gradient(dense, batch):
    """The reason not to use it, although it is exact."""
    for top_k, learns in ((1, False), (2, True)):
        routing = both(name="top_k", num_experts=8, top_k=top_k, renormalise="before_drop")
        config = upcycled_config(dense.config, balance_coef=0.0, z_coef=0.0, **routing)
        sparse = upcycle_model(dense, config, UpcycleOptions(noise=0.1))
        sparse(**batch).loss.backward()
        gradient = sparse.encoder.layers[1].feed_forward.router.weight.grad
        assert bool(gradient.abs().max() > 1e-8) is learns


def test_every_expert_is_the_dense_network_and_the_rest_is_kept(dense):
    config = upcycled_config(dense.config, **both(name="top_k", num_experts=8))
    old, new = dense.state_dict(), upcycle_model(dense, config).state_dict()
    routers = []
    for layer in ("encoder.layers.1", "encoder.layers.3", "decoder.layers.1", "decoder.layers.3"):
        for matrix in ("wi", "wo"):
            experts = new.pop(f"{layer}.feed_forward.experts.{matrix}")
            copied = old.pop(f"{layer}.feed_forward.{matrix}.weight")
            assert all(torch.equal(expert, copied.T) for expert in experts)
        routers.append(new.pop(f"{layer}.feed_forward.router.weight"))
        assert routers[-1].std().item() == pytest.approx(0.02, rel=0.2)
    assert len({float(router.sum()) for router in routers}) == 4
    assert new.keys() == old.keys()
    assert all(torch.equal(weight, old[name]) for name, weight in new.items())


@pytest.mark.parametrize("activation", ["geglu", "relu"])
@pytest.mark.parametrize("granularity", [2, 3, 8])
def test_slices_add_up_to_the_dense_network(activation, granularity):
    dense = make_dense(activation=activation, tie_word_embeddings=activation == "relu").double()
    router = {"name": "top_k", "num_experts": 4, "top_k": 2, "renormalise": "before_drop"}
    config = upcycled_config(dense.config, granularity=granularity, **both(**router))
    assert config.expert_d_ff == 96 // granularity
    made = config.router_config("encoder")
    assert (made.num_experts, made.top_k) == (4 * granularity, 2 * granularity)
    sparse = upcycle_model(dense, config)
    ids = torch.randint(2, 101, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = dense(input_ids=ids, decoder_input_ids=ids)
        after = sparse(input_ids=ids, decoder_input_ids=ids)
    torch.testing.assert_close(after.logits, before.logits, atol=1e-10, rtol=1e-10)
    # And at the cost of the two whole experts that it replaces.
    whole = upcycled_config(dense.config, **both(**router))
    assert dense_twin(config).dense_ff_widths == dense_twin(whole).dense_ff_widths


def test_a_scale_of_the_weights_is_undone(dense):
    router = {"name": "top_k", "num_experts": 4, "top_k": 2, "renormalise": "before_drop"}
    for granularity in (1, 2):
        scaled = both(**router, weight_scale=2.5)
        row = logit_change(dense, granularity=granularity, **scaled)
        assert row.largest < 1e-5 * row.logit_scale


def test_slices_and_capacity_keep_an_experts_room(dense):
    router = {"name": "top_k", "num_experts": 4, "top_k": 2, "capacity_factor": 1.25}
    per_choice = upcycled_config(dense.config, granularity=2, **both(**router))
    assert per_choice.router_config("encoder").capacity_factor == 2.5
    total = upcycled_config(dense.config, granularity=2, **both(**router, capacity_per="total"))
    assert total.router_config("encoder").capacity_factor == 1.25


def test_sliced_expert_choice_is_the_whole_one(dense):
    """The slices of a copy choose the same tokens, each with 1/G of the gate."""
    ids = torch.randint(2, 101, (2, 24), generator=torch.Generator().manual_seed(0))
    logits = []
    for granularity in (1, 4):
        config = upcycled_config(dense.config, granularity=granularity, **expert_choice(2.0))
        sparse = upcycle_model(dense, config)
        with torch.no_grad():
            logits.append(sparse(input_ids=ids, decoder_input_ids=ids).logits)
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)


def test_experts_are_in_every_other_layer_unless_asked_otherwise():
    imported = make_dense(sparse_every=0)  # as a T5's configuration is
    for asked, expected in (({}, [1, 3]), ({"sparse_every": 4}, [3])):
        config = upcycled_config(imported.config, **both(name="top_k", num_experts=2), **asked)
        assert [i for i in range(4) if config.is_sparse("decoder", i)] == expected


def test_noise_is_relative_and_differs_between_experts(dense):
    config = upcycled_config(dense.config, **both(name="top_k", num_experts=8))
    noisy = upcycle_model(dense, config, UpcycleOptions(noise=0.1)).state_dict()
    exact = upcycle_model(dense, config).state_dict()
    for matrix in ("wi", "wo"):
        name = f"encoder.layers.1.feed_forward.experts.{matrix}"
        added = noisy[name] - exact[name]
        assert added.std() / exact[name].std() == pytest.approx(0.1, rel=0.05)
        flat = added.flatten(1)
        correlation = torch.corrcoef(flat) - torch.eye(8)
        assert correlation.abs().max() < 0.1
    router = "encoder.layers.1.feed_forward.router.weight"
    assert torch.equal(noisy[router], exact[router])


def test_a_share_of_the_units_is_redrawn_with_the_statistics_of_the_weight():
    dense = make_dense(d_ff=400, num_layers=2)
    with torch.no_grad():
        dense.encoder.layers[1].feed_forward.wi.weight[:400] += 0.5  # a mean to keep
    config = upcycled_config(dense.config, **both(name="top_k", num_experts=4))
    exact = upcycle_model(dense, config).state_dict()
    drawn = upcycle_model(dense, config, UpcycleOptions(redraw=0.25)).state_dict()
    name = "encoder.layers.1.feed_forward.experts"
    changed_wi = (drawn[f"{name}.wi"] != exact[f"{name}.wi"]).all(1)  # (E, H)
    changed_wo = (drawn[f"{name}.wo"] != exact[f"{name}.wo"]).all(2)  # (E, F)
    assert changed_wo.sum(1).tolist() == [100] * 4
    assert torch.equal(changed_wi[:, :400], changed_wo)  # the same units in all matrices
    assert torch.equal(changed_wi[:, 400:], changed_wo)
    assert len({tuple(row.tolist()) for row in changed_wo}) == 4
    kept = ~changed_wo[0]
    assert torch.equal(
        drawn[f"{name}.wi"][0][:, :400][:, kept], exact[f"{name}.wi"][0][:, :400][:, kept]
    )
    for half in (slice(0, 400), slice(400, 800)):
        old = exact[f"{name}.wi"][0][:, half][:, changed_wo[0]]
        new = drawn[f"{name}.wi"][0][:, half][:, changed_wo[0]]
        assert new.mean().item() == pytest.approx(old.mean().item(), abs=0.01)
        assert new.std().item() == pytest.approx(old.std().item(), rel=0.05)


def test_one_seed_gives_one_model(dense):
    config = upcycled_config(dense.config, **both(name="top_k", num_experts=4))
    options = [UpcycleOptions(noise=0.1, redraw=0.5, seed=seed) for seed in (1, 1, 2)]
    states = [upcycle_model(dense, config, o).state_dict() for o in options]
    for name in ("router.weight", "experts.wi", "experts.wo"):
        key = f"decoder.layers.3.feed_forward.{name}"
        assert torch.equal(states[0][key], states[1][key])
        assert not torch.equal(states[0][key], states[2][key])


PRESETS = ["flan-switch-base-8", "flan-gs-base", "flan-ec-small", "flan-st-base", "flan-moe-mini"]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_routing_of_a_preset_on_the_sizes_of_a_model(dense, preset):
    config = upcycled_config(dense.config, **preset_routing(preset))
    assert (config.d_model, config.d_ff, config.activation) == (48, 96, "geglu")
    sparse = upcycle_model(dense, config)
    row = change(sample_logits(dense), sample_logits(sparse))
    assert row.largest > 1e-3 or preset == "flan-moe-mini"  # raw gates; the last one renormalises
    if preset == "flan-moe-mini":
        assert row.largest < 1e-4


def test_an_extra_network_starts_with_an_output_of_zero(dense):
    routing = preset_routing("flan-st-base")
    assert routing["extra_feed_forward"]
    row = logit_change(dense, renormalise=True, **routing)
    assert row.largest < 1e-5 * row.logit_scale


def test_routers_with_buffers_of_their_own(dense):
    for router in (
        {"name": "deepseek_v3", "num_experts": 8, "top_k": 2, "num_groups": 1, "top_groups": 1},
        {"name": "hash", "num_experts": 8},
        {
            "name": "top_k",
            "num_experts": 8,
            "balance_scope": "global",
            "renormalise": "before_drop",
        },
    ):
        row = logit_change(dense, **both(**router))
        assert row.largest < 2e-5 * row.logit_scale, router  # their weights sum to their scale


def test_a_directory_gives_what_the_model_in_memory_gives(t5_dir, tmp_path):
    convert(t5_dir, tmp_path / "dense")
    dense = FlanMoEForConditionalGeneration.from_pretrained(tmp_path / "dense")
    config = upcycled_config(
        dense.config, renormalise=True, granularity=2, **preset_routing("flan-moe-mini")
    )
    options = UpcycleOptions(noise=0.05, redraw=0.1, seed=3)
    expected = upcycle_model(dense, config, options)
    done = upcycle(t5_dir, tmp_path / "from-t5", config, options, shard_bytes=50_000)
    upcycle(tmp_path / "dense", tmp_path / "from-ours", config, options, measure=False)
    assert done.change == change(sample_logits(dense), sample_logits(expected))
    assert done.change.num_tokens == 64
    for path in (tmp_path / "from-t5", tmp_path / "from-ours"):
        sparse = FlanMoEForConditionalGeneration.from_pretrained(path)
        assert sparse.config.expert_d_ff == 24
        for name, weight in expected.state_dict().items():
            assert torch.equal(sparse.state_dict()[name], weight), name


STREAM = """
import sys
from flan_moe.model import FlanMoEConfig
from flan_moe.model.convert import upcycle, upcycled_config
def peak():
    return next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
router = {"name": "top_k", "num_experts": 10}
config = FlanMoEConfig.from_pretrained(sys.argv[1])
config = upcycled_config(config, encoder_router=router, decoder_router=router)
start = peak()
print(upcycle(sys.argv[1], sys.argv[2], config, measure=False).num_bytes, start, peak())
"""


def test_memory_is_that_of_one_layer_not_of_the_sparse_model(tmp_path):
    dense = make_dense(vocab_size=64, d_model=512, d_ff=2560, num_layers=2)
    dense.save_pretrained(tmp_path / "dense")
    paths = (str(tmp_path / "dense"), str(tmp_path / "sparse"))
    run = subprocess.run(
        [sys.executable, "-c", STREAM, *paths], capture_output=True, text=True, check=True
    )
    num_bytes, start, peak = map(int, run.stdout.split())
    assert num_bytes > 3e8
    assert (peak - start) * 1024 < num_bytes / 2


def test_the_command(t5_dir, tmp_path, capsys):
    arguments = ["--router", "top_k", "--experts", "4", "--top-k", "2"]
    out = str(tmp_path / "sparse")
    assert main(["upcycle", str(t5_dir), out, *arguments, "--renormalise"]) == 0
    printed = capsys.readouterr()
    assert "change of the logits on 64 random tokens: largest " in printed.out
    largest = float(printed.out.split("largest ")[1].split(",")[0])
    assert largest < 1e-4
    assert "upcycled 0.00 of 0.00 GB" in printed.err
    assert "note:" not in printed.err
    wi = load_file(tmp_path / "sparse/model.safetensors")[
        "encoder.layers.1.feed_forward.experts.wi"
    ]
    assert wi.shape == (4, 32, 96)
    assert main(["upcycle", str(t5_dir), out + "2", "--preset", "flan-ec-small"]) == 0
    assert "does not start as the dense one" in capsys.readouterr().err
    written = json.loads((tmp_path / "sparse2/config.json").read_text())
    assert written["decoder_router"]["name"] == "expert_choice_decoder"
    arguments = ["--router", "expert_choice", "--experts", "4", "--no-measure"]
    assert main(["upcycle", str(t5_dir), out + "3", *arguments]) == 0
    assert "change" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--router", "top_k"], "--router without --experts"),
        (["--preset", "flan-ec-small", "--experts", "4"], "--experts with --preset"),
        (["--preset", "t5-v1.1-small"], "preset 't5-v1.1-small' is dense: expected one of"),
        (["--preset", "nothing"], "preset 'nothing' is unknown: expected one of"),
        (["--router", "nothing", "--experts", "4"], "nothing"),
        (["--router", "switch", "--experts", "4", "--renormalise"], "renormalise='before_drop'"),
        (
            ["--router", "top_k", "--experts", "4", "--granularity", "5"],
            "granularity=5: expected a divisor of d_ff, 48",
        ),
        (
            ["--router", "hash", "--experts", "4", "--granularity", "2"],
            "selection='hash': expected 'top_k' or 'expert_choice' for granularity 2",
        ),
        (["--router", "top_k", "--experts", "4", "--noise", "-1"], "noise=-1.0: expected"),
        (["--router", "top_k", "--experts", "4", "--redraw", "1.5"], "redraw=1.5: expected"),
    ],
)
def test_what_cannot_be_upcycled_is_refused(t5_dir, tmp_path, capsys, arguments, message):
    assert main(["upcycle", str(t5_dir), str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["t5"]


def test_a_sparse_source_and_other_sizes_are_refused(dense, sparse_model, tmp_path):
    sparse = sparse_model(dtype=torch.float32)
    with pytest.raises(ValueError, match="encoder_router='top_k': expected a dense model"):
        upcycled_config(sparse.config, **both(name="switch", num_experts=2))
    with pytest.raises(ValueError, match="vocab_size=61: expected 101 of the dense model"):
        upcycle_model(dense, sparse.config)
    with pytest.raises(ValueError, match="no router given"):
        upcycled_config(dense.config, sparse_every=2)
