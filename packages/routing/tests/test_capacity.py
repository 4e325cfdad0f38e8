"""Capacity: the rounding rule against published values, and the queue against a plain loop."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flan_moe.routing import expert_capacity, fits_capacity

RULES = {
    "flaxformer": {"min_capacity": 4},
    "mesh": {"min_capacity": 4, "rounding": "floor"},
    "vmoe": {"rounding": "ceil", "multiple": 4},
    "vmoe k=2": {"rounding": "ceil", "multiple": 4, "choices": 2},
    "deepspeed": {"rounding": "ceil", "min_capacity": 8},
    "deepspeed k=2": {"rounding": "ceil", "min_capacity": 8, "choices": 2},
    "tutel": {"rounding": "per_choice_ceil"},
    "tutel k=2": {"rounding": "per_choice_ceil", "choices": 2},
    "megatron k=2": {"rounding": "ceil", "choices": 2},
}


@pytest.mark.parametrize(
    ("factor", "tokens", "experts", "capacities"),
    # Measured with the implementations themselves, in the order of RULES.
    [
        (1.25, 2048, 64, [40, 40, 40, 80, 40, 80, 40, 80, 80]),
        (1.25, 100, 8, [16, 15, 16, 32, 16, 32, 16, 32, 32]),
        (2.0, 100, 8, [25, 25, 28, 52, 25, 50, 26, 52, 50]),
        (1.0, 20, 8, [4, 4, 4, 8, 8, 8, 3, 6, 5]),
        (1.25, 10, 8, [4, 4, 4, 4, 8, 8, 2, 4, 4]),
    ],
)
def test_capacity_follows_the_convention_of_each_implementation(
    factor, tokens, experts, capacities
):
    computed = {
        name: expert_capacity(factor, num_tokens=tokens, num_experts=experts, **rule)
        for name, rule in RULES.items()
    }
    assert computed == dict(zip(RULES, capacities, strict=True))


def test_unknown_rules_are_refused():
    with pytest.raises(ValueError, match="rounding='up'"):
        expert_capacity(1.0, num_tokens=4, num_experts=2, rounding="up")
    with pytest.raises(ValueError, match="order='random'"):
        fits_capacity(torch.zeros(2, 1), num_experts=2, capacity=1, order="random")
    with pytest.raises(ValueError, match="order='gate' needs gate_TK"):
        fits_capacity(torch.zeros(2, 1), num_experts=2, capacity=1, order="gate")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factor": float("nan")}, "factor=nan: expected a number that is not negative"),
        ({"factor": float("inf")}, "factor=inf"),
        ({"factor": -1.0}, "factor=-1.0"),
        ({"num_experts": 0}, "num_experts=0: expected at least 1"),
        ({"multiple": 0}, "multiple=0: expected at least 1"),
    ],
)
def test_capacities_that_mean_nothing_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        expert_capacity(**({"factor": 1.0, "num_tokens": 4, "num_experts": 2} | change))


@pytest.mark.parametrize("rounding", ["round", "floor", "ceil", "per_choice_ceil"])
def test_a_factor_that_overflows_is_room_for_all(rounding):
    assert expert_capacity(1e308, num_tokens=100, num_experts=4, rounding=rounding) == 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expert_TK": torch.tensor([1, 0])}, r"shape \(2,\); expected integers of shape"),
        ({"expert_TK": torch.tensor([[1.7], [1.2]])}, "expert_TK is torch.float32"),
        ({"gate_TK": torch.rand(3, 1)}, r"gate_TK has shape \(3, 1\); expected \(2, 1\)"),
    ],
)
def test_queues_that_are_no_queues_are_refused(change, message):
    queue = {"expert_TK": torch.tensor([[1], [0]]), "num_experts": 2, "capacity": 1}
    with pytest.raises(ValueError, match=message):
        fits_capacity(**(queue | {"order": "priority", "gate_TK": torch.rand(2, 1)} | change))


def test_an_expert_that_does_not_exist_is_not_taken_for_another_one():
    expert_TK = torch.tensor([[257], [1]])  # in one byte, 257 is 1
    with pytest.raises(RuntimeError, match="index 257 is out of bounds"):
        fits_capacity(expert_TK, num_experts=4, capacity=1)


def test_halves_round_to_even():
    assert expert_capacity(1.0, num_tokens=20, num_experts=8) == 2
    assert expert_capacity(1.0, num_tokens=28, num_experts=8) == 4


def test_capacity_is_never_more_than_the_tokens():
    assert expert_capacity(9.0, num_tokens=3, num_experts=2, min_capacity=4) == 3
    assert expert_capacity(1.0, num_tokens=0, num_experts=2, min_capacity=4) == 0


@given(st.data())
def test_queue_serves_first_choices_first_then_left_to_right(data):
    experts = data.draw(st.integers(1, 4))
    k = data.draw(st.integers(1, experts))
    choices = data.draw(
        st.lists(st.permutations(range(-1, experts)).map(lambda p: p[:k]), max_size=12)
    )
    capacity = data.draw(st.integers(0, 5))
    expert_TK = torch.tensor(choices, dtype=torch.int64).reshape(len(choices), k)

    room = [capacity] * experts
    expected = [[False] * k for _ in choices]
    for choice in range(k):
        for token, chosen in enumerate(choices):
            if chosen[choice] >= 0 and room[chosen[choice]] > 0:
                room[chosen[choice]] -= 1
                expected[token][choice] = True

    fits_TK = fits_capacity(expert_TK, num_experts=experts, capacity=capacity)
    assert fits_TK.tolist() == expected
