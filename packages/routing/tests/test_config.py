"""RouterConfig refuses what cannot work, by name, and survives a round trip through JSON."""

import copy
import dataclasses
import json
import pickle

import pytest

from flan_moe.routing import PRESETS, ROUTER_NAMES, RouterConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "swich"}, "name='swich': expected one of 'switch', .* mean 'switch'"),
        ({"name": 3}, "name=3: expected the name of a router"),
        ({"num_experts": 0}, "num_experts=0.*at least 1"),
        ({"num_experts": 8.0}, "num_experts=8.0.*integer"),
        ({"num_experts": True}, "num_experts=True.*integer"),
        ({"name": "top_k", "top_k": 0}, "top_k=0.*at least 1"),
        ({"name": "top_k", "top_k": 9}, "top_k=9.*at most num_experts, which is 8"),
        ({"top_k": 2}, "top_k=2.*1 for name='switch'"),
        ({"name": "expert_choice", "top_k": 2}, "top_k=2.*capacity_factor"),
        ({"name": "expert_choice", "capacity_factor": None}, "capacity_factor=None.*a number"),
        ({"name": "expert_choice", "score": "top_k_softmax"}, "score='top_k_softmax'"),
        ({"capacity_factor": 0}, "capacity_factor=0: expected a positive number"),
        ({"capacity_factor": float("nan")}, "capacity_factor=nan"),
        ({"capacity_factor": "1.25"}, "capacity_factor='1.25'"),
        ({"eval_capacity_factor": -1.0}, "eval_capacity_factor=-1.0"),
        ({"min_capacity": -1}, "min_capacity=-1"),
        ({"capacity_multiple": 0}, "capacity_multiple=0"),
        ({"capacity_rounding": "up"}, "capacity_rounding='up': expected one of 'round', 'floor'"),
        ({"drop_order": True}, "drop_order=True: expected one of 'token'"),
        ({"jitter": 1.0}, r"jitter=1.0.*\[0, 1\)"),
        ({"jitter": None}, "jitter=None"),
        ({"noise": -0.1}, "noise=-0.1"),
        ({"renormalise": "before_drop"}, "renormalise='before_drop'.*would not train the router"),
        ({"name": "top_k", "renormalise": True}, "renormalise=True: expected one of 'never'"),
        ({"name": "top_k", "weight_scale": 0}, "weight_scale=0: expected a positive number"),
        ({"name": "top_k", "weights": "uniform"}, "weights='uniform': expected 'score'"),
        ({"name": "st_moe", "top_k": 3}, r"second_expert='random': .*\(top_k=2\)"),
        ({"name": "hash", "eval_second_expert": "threshold"}, "eval_second_expert='threshold'"),
        ({"name": "deepseek_v3", "num_groups": 7}, "num_groups=7: expected a divisor of 256"),
        ({"name": "deepseek_v3", "top_groups": 9}, "top_groups=9: expected at most num_groups"),
        ({"name": "deepseek_v3", "num_experts": 16, "top_groups": 3}, "top_k=8: .*top_groups"),
        ({"name": "expert_choice", "num_groups": 2}, "num_groups=2: expected 1 unless"),
        ({"name": "expert_choice", "bias_update": "sign"}, "bias_update='sign'"),
        ({"name": "top_k", "top_k": 8, "bias_update": "quantile"}, "bias_update='quantile'.*top_k"),
        ({"name": "deepseek_v3", "bias_update": "quantile"}, "'quantile': .* where top_groups is"),
        ({"name": "deepseek_v4", "bias_update": "quantile"}, "score='sqrt_softplus'"),
        ({"name": "hash", "vocab_size": 0}, "vocab_size=0"),
        ({"extra_losses": ["variety"]}, "extra_losses=.'variety'.: expected some of importance"),
        ({"extra_losses": [["load"]]}, "extra_losses=.*expected some of importance"),
        ({"extra_losses": "load"}, "extra_losses='load'"),
        ({"extra_losses": ["load"]}, "extra_losses=.*noise above 0"),
        ({"name": "st_moe", "balance_scope": "global"}, "balance_count='first_choice'"),
        ({"check_finite": 1}, "check_finite=1.*true or false"),
        ({"extra": {"depth": 3}}, "extra={'depth': 3}: expected nothing"),
        ({"extra": None}, "extra=None: expected a mapping"),
    ],
)
def test_impossible_options_are_refused_by_key_value_and_expectation(options, message):
    with pytest.raises(ValueError, match=message):
        RouterConfig(**options)


@pytest.mark.parametrize("name", ROUTER_NAMES)
def test_round_trip_through_json(name):
    config = RouterConfig(name=name, num_experts=256, eval_capacity_factor=2.0, hash_seed=3)
    assert RouterConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    assert hash(config) == hash(dataclasses.replace(config))
    assert dataclasses.replace(config, num_experts=512).num_experts == 512


def test_options_that_are_not_given_are_those_of_the_preset():
    assert RouterConfig(name="st_moe").renormalise == "before_drop"
    assert RouterConfig(name="st_moe", renormalise="never").renormalise == "never"
    assert RouterConfig(name="mixtral").capacity_factor is None
    assert RouterConfig(name="mixtral", capacity_factor=1.5).capacity_factor == 1.5
    assert RouterConfig(name="switch", capacity_factor=None).capacity_factor is None


def test_from_dict_names_unknown_keys():
    with pytest.raises(
        ValueError, match=r"unknown router option.*'capacity', 'experts'.*known: balance_count, "
    ):
        RouterConfig.from_dict({"name": "switch", "experts": 8, "capacity": 1.0})


@pytest.mark.parametrize("values", [None, "top_k", [("name", "top_k")]])
def test_from_dict_takes_mappings(values):
    with pytest.raises(TypeError, match="from_dict: expected a mapping, got "):
        RouterConfig.from_dict(values)


def test_config_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RouterConfig().name = "top_k"


@pytest.mark.parametrize("name", ROUTER_NAMES)
def test_only_expert_choice_and_batch_priority_look_at_later_tokens(name):
    config = RouterConfig(name=name)
    assert config.is_causal == (name not in ("expert_choice", "flaxformer_top2"))


def test_priority_looks_at_later_tokens_only_where_somebody_may_be_dropped():
    dropless = RouterConfig(name="flaxformer_top2", capacity_factor=None)
    assert dropless.is_causal
    assert not dataclasses.replace(dropless, eval_capacity_factor=2.0).is_causal
    assert not RouterConfig(name="top_k", drop_order="gate").is_causal


def test_every_preset_says_where_it_comes_from():
    for name, preset in PRESETS.items():
        assert len(preset.source) > 20, name
        assert set(preset.options) < {field.name for field in dataclasses.fields(RouterConfig)}
