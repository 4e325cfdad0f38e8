import json

import pytest

from flan_moe.model import FlanMoEConfig, FlanMoEForConditionalGeneration
from flan_moe.routing import RouterConfig

TOP_2 = {"name": "top_k", "num_experts": 4, "top_k": 2}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"tie_word_embeddings": True, "activation": "relu", "num_decoder_layers": 3},
        {"encoder_router": {"name": "expert_choice"}, "decoder_router": TOP_2},
        {"dense_ff_widths": {"encoder": [1, 2], "decoder": [3, 4]}, "num_layers": 2},
        {"expert_dropout_rate": 0.2, "sparse_every": 0, "pad_token_id": 3},
        {"encoder_router": RouterConfig(name="switch", capacity_factor=None)},
        {"decoder_router": TOP_2, "extra_feed_forward": True, "expert_d_ff": 7},
    ],
)
def test_round_trips(values, tmp_path):
    config = FlanMoEConfig(**values)
    config.save_pretrained(tmp_path)
    assert FlanMoEConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert FlanMoEConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    loaded = FlanMoEConfig.from_pretrained(tmp_path)
    assert loaded.router_config("encoder") == config.router_config("encoder")
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "flan_moe"


def test_a_config_written_by_the_other_transformers_generation_loads():
    """Keys that only transformers 4 (or only 5) writes must not look like typing errors."""
    written = {
        "model_type": "flan_moe",
        "architectures": ["FlanMoEForConditionalGeneration"],
        "transformers_version": "4.57.6",
        "torch_dtype": "float32",
        "dtype": "float32",
        "is_encoder_decoder": True,
        "torchscript": False,
        "tf_legacy_loss": False,
        "pruned_heads": {},
        "top_k": 50,
        "max_length": 20,
        "d_model": 64,
    }
    assert FlanMoEConfig.from_dict(written).d_model == 64


def test_a_config_from_before_extra_networks_has_none():
    written = FlanMoEConfig(encoder_router=TOP_2).to_dict()
    del written["extra_feed_forward"]
    assert FlanMoEConfig.from_dict(written).extra_feed_forward is False


def test_experts_may_have_a_width_of_their_own():
    config = FlanMoEConfig(d_ff=96, sparse_every=4, encoder_router=TOP_2, expert_d_ff=24)
    assert [config.ff_width("encoder", i) for i in range(4)] == [96, 96, 96, 24]
    assert {config.ff_width("decoder", i) for i in range(8)} == {96}


def test_extra_networks_are_where_a_stack_is_sparse():
    config = FlanMoEConfig(sparse_every=4, encoder_router=TOP_2, extra_feed_forward=True)
    assert [i for i in range(8) if config.has_extra_feed_forward("encoder", i)] == [3, 7]
    assert not any(config.has_extra_feed_forward("decoder", i) for i in range(8))


def test_sparse_layers_follow_the_mixed_layout():
    config = FlanMoEConfig(num_layers=8, num_decoder_layers=6, sparse_every=4, encoder_router=TOP_2)
    assert [i for i in range(8) if config.is_sparse("encoder", i)] == [3, 7]
    assert not any(config.is_sparse("decoder", i) for i in range(6))


def test_the_cache_is_sized_by_the_decoder():
    config = FlanMoEConfig(num_layers=4, num_decoder_layers=2)
    assert config.get_text_config(decoder=True).num_hidden_layers == 2
    assert config.get_text_config() is config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"d_modle": 3}, "unknown key 'd_modle' (value 3); did you mean 'd_model'?"),
        ({"zzz": 3}, "unknown key 'zzz' (value 3); known: activation,"),
        ({"num_experts": 8}, "num_experts=8: expected to be inside encoder_router or"),
        ({"top_k": 2}, "top_k=2: expected to be inside encoder_router or decoder_router"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder=False: expected true"),
        ({"d_model": "512"}, "d_model='512': expected an integer of at least 1"),
        ({"d_ff": 0}, "d_ff=0: expected an integer of at least 1"),
        ({"num_heads": True}, "num_heads=True: expected an integer of at least 1"),
        ({"num_layers": 0}, "num_layers=0: expected an integer of at least 1"),
        ({"num_decoder_layers": 1.5}, "num_decoder_layers=1.5: expected an integer"),
        ({"dropout_rate": 1.0}, "dropout_rate=1.0: expected a number in [0, 1)"),
        ({"expert_dropout_rate": -0.1}, "expert_dropout_rate=-0.1: expected a number in [0, 1)"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon=0: expected a positive number"),
        ({"initializer_factor": "1"}, "initializer_factor='1': expected a positive number"),
        ({"balance_coef": -1}, "balance_coef=-1: expected a number that is not negative"),
        ({"z_coef": float("nan")}, "z_coef=nan: expected a number that is not negative"),
        ({"d_model": 10**30}, f"d_model={10**30}: expected an integer of at most 2147483647"),
        ({"relative_attention_max_distance": 10**400}, "expected an integer of at most"),
        ({"layer_norm_epsilon": 10**400}, "expected a positive number"),
        ({"dtype": "floaty"}, "dtype='floaty': expected the name of a torch dtype"),
        ({"torch_dtype": 7}, "torch_dtype=7: expected the name of a torch dtype"),
        ({"activation": ["relu"]}, "activation=['relu']: expected one of 'relu', 'relu2'"),
        ({"activation": "mish"}, "activation='mish': expected one of 'relu', 'relu2'"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings=1: expected true or false"),
        ({"expert_d_ff": 8}, "expert_d_ff=8: expected None unless a router makes"),
        ({"expert_d_ff": 0, "encoder_router": TOP_2}, "expert_d_ff=0: expected an integer of"),
        ({"extra_feed_forward": 2048}, "extra_feed_forward=2048: expected true or false"),
        ({"extra_feed_forward": True}, "extra_feed_forward=True: expected false unless a router"),
        ({"vocab_size": 10, "eos_token_id": 10}, "eos_token_id=10: expected a token id below"),
        ({"relative_attention_num_buckets": 6}, "relative_attention_num_buckets=6: expected a mul"),
        ({"relative_attention_max_distance": 16}, "max_distance=16: expected more than half of"),
        ({"sparse_every": -1}, "sparse_every=-1: expected an integer of at least 0"),
        (
            {"sparse_every": 0, "encoder_router": TOP_2},
            "sparse_every=0: expected at least 1 because",
        ),
        ({"sparse_every": 9, "encoder_router": TOP_2}, "sparse_every=9: expected at most the 8"),
        ({"encoder_router": "switch"}, "encoder_router='switch': expected a mapping"),
        ({"encoder_router": {"topk": 2}}, "encoder_router: unknown router option(s) 'topk'"),
        (
            {"decoder_router": {"name": "top_k", "num_experts": 4, "top_k": 5}},
            "decoder_router: router option top_k=5: expected at most num_experts, which is 4",
        ),
        (
            {"decoder_router": {"name": "expert_choice"}},
            "decoder_router.name='expert_choice': expected a causal router",
        ),
        ({"dense_ff_widths": [1, 2]}, "dense_ff_widths=[1, 2]: expected a mapping such as"),
        ({"dense_ff_widths": {"middle": []}}, "dense_ff_widths.middle=[]: expected only the keys"),
        ({"dense_ff_widths": {"encoder": [5]}}, "expected one width for each of 8 layers"),
        (
            {"num_layers": 2, "dense_ff_widths": {"encoder": [5, 0]}},
            "dense_ff_widths.encoder[1]=0: expected an integer of at least 1",
        ),
        (
            {"num_layers": 2, "dense_ff_widths": {"encoder": [5, 5]}, "encoder_router": TOP_2},
            "expected no widths, because encoder_router makes the stack sparse",
        ),
    ],
)
def test_impossible_values_are_refused_by_name(values, message):
    with pytest.raises(ValueError) as error:
        FlanMoEConfig(**values)
    assert message in str(error.value)


def test_values_changed_afterwards_are_checked_again(tmp_path, sparse_config):
    config = sparse_config()
    config.decoder_router = {"name": "expert_choice"}
    with pytest.raises(ValueError, match="causal router"):
        FlanMoEForConditionalGeneration(config)
    with pytest.raises(ValueError, match="causal router"):
        config.save_pretrained(tmp_path)


def test_a_number_of_experts_that_no_model_has_is_refused():
    router = {"name": "switch", "num_experts": 10**9}
    with pytest.raises(
        ValueError, match=r"encoder_router\.num_experts=1000000000: expected an int"
    ):
        FlanMoEConfig(encoder_router=router)
