"""Batches hold every sequence once, within their bounds, with little padding."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from flan_moe.eval.adapters.batching import pad, token_budget_batches

CPU = torch.device("cpu")


@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 6)), max_size=60),
    st.integers(1, 1000),
    st.integers(1, 20),
)
def test_batches_are_a_partition_within_the_budget(sequences, token_budget, max_rows):
    lengths = [length for length, _ in sequences]
    copies = [count for _, count in sequences]
    batches = token_budget_batches(
        lengths, token_budget=token_budget, max_rows=max_rows, copies=copies
    )
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        rows = sum(copies[index] for index in batch)
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or (rows <= max_rows and rows * longest <= token_budget)
    flat = [lengths[index] for batch in batches for index in batch]
    assert flat == sorted(flat, reverse=True)


@given(st.lists(st.integers(1, 50), min_size=2, max_size=40), st.integers(50, 400))
def test_a_batch_is_closed_only_when_it_is_full(lengths, token_budget):
    batches = token_budget_batches(lengths, token_budget=token_budget, max_rows=1000)
    for batch in batches[:-1]:
        assert (len(batch) + 1) * lengths[batch[0]] > token_budget


def test_padding_on_either_side():
    ids, mask = pad([[5, 6, 7], [8]], value=0, device=CPU)
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    ids, mask = pad([[5, 6, 7], [8]], value=0, device=CPU, left=True)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
