"""Capacity: the rounding rule against published values, and the queue against a plain loop."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flan_moe.routing import expert_capacity, fits_capacity


@pytest.mark.parametrize(
    ("factor", "tokens", "experts", "capacity"),
    # What flaxformer computes, with its minimum of 4.
    [
        (1.25, 2048, 64, 40),
        (1.25, 100, 8, 16),
        (2.0, 100, 8, 25),
        (1.0, 20, 8, 4),
        (1.25, 10, 8, 4),
    ],
)
def test_capacity_equals_flaxformer(factor, tokens, experts, capacity):
    got = expert_capacity(factor, num_tokens=tokens, num_experts=experts, min_capacity=4)
    assert got == capacity


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
