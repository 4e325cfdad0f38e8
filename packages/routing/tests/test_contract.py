"""`build_routing` makes valid routings from any list, and `validate` finds what is broken."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flan_moe.routing import Routing, build_routing


def build(pairs, *, tokens, experts, keep=None, trim=None):
    """A routing from (token, expert) pairs; weight i + 1 tells assignment i."""
    return build_routing(
        token_N=torch.tensor([t for t, _ in pairs], dtype=torch.int64),
        expert_N=torch.tensor([e for _, e in pairs], dtype=torch.int64),
        weight_N=torch.arange(1.0, len(pairs) + 1),
        keep_N=None if keep is None else torch.tensor(keep, dtype=torch.bool),
        num_tokens=tokens,
        num_experts=experts,
        losses={},
        stats={},
        trim=trim,
    )


@given(st.data())
def test_rows_are_the_kept_pairs_sorted_and_indexed_both_ways(data):
    tokens, experts = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    pair = st.tuples(st.integers(0, tokens - 1), st.integers(0, experts - 1))
    pairs = data.draw(st.lists(pair, unique=True, max_size=20))
    keep = data.draw(st.none() | st.lists(st.booleans(), min_size=len(pairs), max_size=len(pairs)))
    trim = data.draw(st.sampled_from([None, True, False]))
    routing = build(pairs, tokens=tokens, experts=experts, keep=keep, trim=trim)
    routing.validate()

    kept = [(e, t, float(i + 1)) for i, (t, e) in enumerate(pairs) if keep is None or keep[i]]
    count = len(kept)
    load = routing.expert_offsets.diff()
    rows = zip(
        torch.repeat_interleave(load).tolist(),
        routing.row_token_R[:count].tolist(),
        routing.row_weight_R[:count].tolist(),
        strict=True,
    )
    assert list(rows) == sorted(kept)
    assert routing.num_rows == (len(pairs) if trim is False else count)
    assert torch.equal(routing.row_weight_R[count:], torch.zeros(routing.num_rows - count))
    assert routing.stats["expert_load_E"].tolist() == load.tolist()
    for token in range(tokens):
        start, end = routing.token_offsets[token : token + 2].tolist()
        mine = routing.token_row_R[start:end].long()
        assert (routing.row_token_R[mine] == token).all()


def good_routing():
    return build([(0, 0), (2, 0), (0, 1), (1, 2)], tokens=4, experts=3)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("row_token_R", torch.tensor([0, 2, 0, 1]), "row_token_R must be torch.int32"),
        ("row_token_R", [2, 0, 0, 1], "not strictly increasing within an expert"),
        ("row_token_R", [0, 0, 0, 1], "not strictly increasing within an expert"),
        ("row_token_R", [0, 4, 0, 1], r"tokens 0..4, outside 0..3"),
        ("row_token_R", [0, 2, 0], "row_weight_R has 4 entries, row_token_R 3"),
        ("row_weight_R", torch.ones(4).half(), "row_weight_R must be torch.float32"),
        ("row_weight_R", torch.tensor([1.0, float("nan"), 1, 1]), "not finite"),
        ("expert_offsets", [0, 2, 1, 4], "expert_offsets is not non-decreasing"),
        ("expert_offsets", [1, 2, 3, 4], r"expert_offsets\[0\] is 1"),
        ("expert_offsets", [0, 2, 3, 5], "is 5, more than the 4 rows allocated"),
        ("expert_offsets", [0, 2, 3, 3], r"token_offsets\[-1\] is 4, but there are 3 rows"),
        ("expert_offsets", [], "expert_offsets must have at least one entry"),
        ("token_offsets", [0, 2, 3, 3, 4], "under a token that is not the row's"),
        ("token_offsets", [0, 4], r"tokens 0..2, outside 0..0"),
        ("token_offsets", [0, 2, 3, 4, 3], r"token_offsets is not non-decreasing"),
        ("token_row_R", [0, 2, 3, 3], "not a permutation"),
        ("token_row_R", [2, 0, 3, 1], "token_row_R is not increasing within a token"),
        ("losses", {"z": torch.zeros(1)}, r"losses\['z'\] must be a float32 scalar"),
        ("stats", {"load": torch.zeros(2, requires_grad=True)}, r"stats\['load'\] must be"),
    ],
)
def test_validate_names_the_broken_invariant(field, value, message):
    good = good_routing()
    good.validate()
    if isinstance(value, list):
        value = torch.tensor(value, dtype=torch.int32)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(good, **{field: value}).validate()


def test_routing_is_immutable_and_tells_its_sizes():
    routing = good_routing()
    assert (routing.num_tokens, routing.num_experts, routing.num_rows) == (4, 3, 4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        routing.row_token_R = routing.token_row_R


def test_gradient_reaches_the_weight_of_every_kept_assignment_and_no_other():
    weight_N = torch.arange(1.0, 5.0, requires_grad=True)
    routing = build_routing(
        token_N=torch.tensor([1, 0, 1, 2]),
        expert_N=torch.tensor([1, 1, 0, 0]),
        weight_N=weight_N,
        keep_N=torch.tensor([True, False, True, True]),
        num_tokens=3,
        num_experts=2,
        losses={},
        stats={},
        trim=False,
    )
    assert isinstance(routing, Routing)
    (routing.row_weight_R**2).sum().backward()
    assert weight_N.grad.tolist() == [2.0, 0.0, 6.0, 8.0]
