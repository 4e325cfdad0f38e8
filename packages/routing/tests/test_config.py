"""RouterConfig refuses what cannot work, by name, and survives a round trip through JSON."""

import dataclasses
import json

import pytest

from flan_moe.routing import ROUTER_NAMES, RouterConfig, build_router


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "swich"}, "name='swich'.*'switch', 'top_k', 'expert_choice'"),
        ({"num_experts": 0}, "num_experts=0.*at least 1"),
        ({"num_experts": 8.0}, "num_experts=8.0.*integer"),
        ({"num_experts": True}, "num_experts=True.*integer"),
        ({"name": "top_k", "top_k": 0}, "top_k=0.*at least 1"),
        ({"name": "top_k", "top_k": 9}, "top_k=9.*at most num_experts, which is 8"),
        ({"top_k": 2}, "top_k=2.*1 for name='switch'"),
        ({"name": "expert_choice", "top_k": 2}, "top_k=2.*capacity_factor"),
        ({"name": "expert_choice", "capacity_factor": None}, "capacity_factor=None.*a number"),
        ({"capacity_factor": 0}, "capacity_factor=0: expected a positive number"),
        ({"capacity_factor": float("nan")}, "capacity_factor=nan"),
        ({"capacity_factor": "1.25"}, "capacity_factor='1.25'"),
        ({"eval_capacity_factor": -1.0}, "eval_capacity_factor=-1.0"),
        ({"min_capacity": -1}, "min_capacity=-1"),
        ({"jitter": 1.0}, r"jitter=1.0.*\[0, 1\)"),
        ({"jitter": None}, "jitter=None"),
        ({"normalize_weights": 1}, "normalize_weights=1.*true or false"),
        ({"normalize_weights": True}, "normalize_weights=True.*would not train the router"),
    ],
)
def test_impossible_options_are_refused_by_key_value_and_expectation(options, message):
    with pytest.raises(ValueError, match=message):
        RouterConfig(**options)


def test_round_trip_through_json():
    config = RouterConfig(
        name="top_k", num_experts=6, top_k=2, capacity_factor=None, eval_capacity_factor=2.0
    )
    assert RouterConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_from_dict_names_unknown_keys():
    with pytest.raises(
        ValueError, match=r"unknown router option.*'capacity', 'experts'.*known: cap"
    ):
        RouterConfig.from_dict({"name": "switch", "experts": 8, "capacity": 1.0})


def test_config_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RouterConfig().name = "top_k"


@pytest.mark.parametrize("name", ROUTER_NAMES)
def test_only_expert_choice_looks_at_later_tokens(name):
    router = build_router(RouterConfig(name=name), 4)
    assert router.is_causal == router.config.is_causal == (name != "expert_choice")
