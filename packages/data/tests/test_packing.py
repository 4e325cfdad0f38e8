"""Packing loses nothing, mixes nothing, stays in its budgets, and counts what it cuts."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_moe.data.packing import (
    PackedCollator,
    assign_rows,
    choose_target_budget,
    pack_examples,
)

BUDGET = (24, 10)
lengths = st.lists(st.tuples(st.integers(1, 24), st.integers(1, 10)), min_size=1, max_size=40)


def example(number, source, target, task=0):
    """Tokens that tell which example and position they come from."""
    return {
        "input_ids": np.arange(source, dtype=np.uint16) + 100 * number + 1,
        "labels": np.arange(target, dtype=np.uint16) + 100 * number + 51,
        "task": task,
    }


def make(sizes):
    return [example(number, *size, task=number % 3) for number, size in enumerate(sizes)]


def segments(batch):
    """Every (input tokens, target tokens) found in the rows."""
    found = []
    for row in range(len(batch["input_ids"])):
        for segment in range(1, int(batch["encoder_segments"][row].max()) + 1):
            inside = batch["encoder_segments"][row] == segment
            target = batch["decoder_segments"][row] == segment
            found.append(
                (
                    tuple(batch["input_ids"][row][inside].tolist()),
                    tuple(batch["labels"][row][target].tolist()),
                )
            )
    return found


def pack(examples, **options):
    return pack_examples(
        examples, max_input_tokens=BUDGET[0], max_target_tokens=BUDGET[1], **options
    )


@settings(deadline=None)
@given(lengths)
def test_every_example_is_in_exactly_one_segment_whole(sizes):
    examples = make(sizes)
    batch, counts = pack(examples)
    expected = [(tuple(e["input_ids"].tolist()), tuple(e["labels"].tolist())) for e in examples]
    assert sorted(segments(batch)) == sorted(expected)
    assert counts == {"examples": len(sizes), "truncated": 0, "dropped": 0}


@settings(deadline=None)
@given(lengths)
def test_layout_of_the_batch(sizes):
    examples = make(sizes)
    batch, _ = pack(examples)
    assert next(iter(batch)) == "task_ids", "streaming counts samples by the first value"
    assert batch["task_ids"].tolist() == [e["task"] for e in examples]
    encoder, decoder = batch["encoder_segments"], batch["decoder_segments"]
    assert batch["input_ids"].shape == encoder.shape == batch["attention_mask"].shape
    assert batch["labels"].shape == decoder.shape
    assert encoder.shape[0] == decoder.shape[0]
    assert encoder.shape[1] <= BUDGET[0]
    assert decoder.shape[1] <= BUDGET[1]
    assert torch.equal(batch["attention_mask"], (encoder > 0).long())
    assert torch.equal(batch["labels"] == -100, decoder == 0)
    assert torch.all(batch["input_ids"][encoder == 0] == 0)
    assert {value.dtype for value in batch.values()} == {torch.int64}
    for tensor in (encoder, decoder):  # segments run 1, 2, ... without holes, padding at the end
        for row in tensor:
            tokens = row[row > 0]
            assert torch.equal(row[: len(tokens)], tokens)
            assert torch.all(tokens.diff() >= 0)
            assert set(tokens.tolist()) == set(range(1, int(tokens.max()) + 1))


@settings(deadline=None)
@given(lengths)
def test_rows_obey_both_budgets_and_are_no_more_than_needed(sizes):
    rows = assign_rows(sizes, BUDGET)
    assert sorted(index for row in rows for index in row) == list(range(len(sizes)))
    for side, limit in enumerate(BUDGET):
        assert all(sum(sizes[index][side] for index in row) <= limit for row in rows)
    # A row is closed only when nothing that is left fits: no example fits an earlier row.
    used = [[sum(sizes[index][side] for index in row) for side in (0, 1)] for row in rows]
    for number, row in enumerate(rows):
        for index in row:
            for earlier in used[:number]:
                sums = [earlier[side] + sizes[index][side] for side in (0, 1)]
                assert any(sums[side] > BUDGET[side] for side in (0, 1))


@settings(deadline=None)
@given(lengths)
def test_packing_is_a_function_of_the_batch(sizes):
    first, _ = pack(make(sizes))
    second, _ = pack(make(sizes))
    for key in first:
        assert torch.equal(first[key], second[key])


def flan_like(count, seed=0):
    """Lengths with the quantiles of zero- and few-shot Natural Instructions (1,461 tasks)."""
    rng = np.random.default_rng(seed)
    inputs = rng.lognormal(5.14, 0.75, count).clip(16, 4000).astype(int)
    targets = rng.lognormal(1.9, 1.35, count).clip(2, 1500).astype(int)
    return np.stack([inputs, targets], axis=1)


def test_packing_fills_both_budgets_with_flan_like_lengths():
    lengths = flan_like(256 * 40)
    chosen = choose_target_budget(lengths, 2048)
    budget = (2048, chosen.max_target_tokens)
    filled, rows = np.zeros(2), 0
    for batch in lengths.reshape(40, 256, 2):
        kept = batch[(batch <= budget).all(1)]
        filled += kept.sum(0)
        rows += len(assign_rows(kept, budget))
    encoder, decoder = filled / (rows * np.array(budget))
    assert encoder > 0.96
    assert decoder > 0.8
    assert chosen.overlong < 0.03


def test_the_decoder_budget_is_the_largest_that_is_filled():
    # 0.97 * 100 / 10 = 9.7 examples of 5 tokens fill 48.5 of 48 tokens, and 0.87 of 56.
    chosen = choose_target_budget([(10, 5)] * 50, 100, fill=0.86)
    assert chosen.max_target_tokens == 56
    assert chosen.fill == pytest.approx(48.5 / 56)
    assert chosen.overlong == chosen.lost == 0


def test_the_decoder_budget_grows_rather_than_leave_out_too_much():
    # A row holds 9.7 examples: 66.9 target tokens with the long ones, 19.4 without.
    lengths = [(10, 2)] * 95 + [(10, 100)] * 5
    filled = choose_target_budget(lengths, 100, fill=0.95)
    assert (filled.max_target_tokens, filled.overlong) == (16, pytest.approx(0.05))
    assert filled.lost == pytest.approx(500 / 690)
    longer = choose_target_budget(lengths, 100, fill=0.95, most_overlong=0.02)
    assert (longer.max_target_tokens, longer.overlong) == (104, 0)
    with pytest.raises(ValueError, match=r"max_input_tokens is 9: 100.00% of the inputs"):
        choose_target_budget(lengths, 9, most_overlong=0.05)
    with pytest.raises(ValueError, match="fill is 2"):
        choose_target_budget(lengths, 9, fill=2)


def test_without_packing_each_example_has_its_row():
    batch, _ = pack(make([(5, 2), (3, 1), (7, 3)]), pack=False)
    assert batch["encoder_segments"].max() == 1
    assert segments(batch) == [
        (tuple(e["input_ids"].tolist()), tuple(e["labels"].tolist()))
        for e in make([(5, 2), (3, 1), (7, 3)])
    ]


def test_a_truncated_example_keeps_the_end_of_its_prompt_and_the_start_of_its_target():
    batch, counts = pack([example(0, 30, 12), example(1, 3, 2)])
    assert counts["truncated"] == 1
    found = segments(batch)
    assert (tuple(range(7, 31)), tuple(range(51, 61))) in found
    assert len(found) == 2


def test_overlong_examples_are_dropped_and_still_counted_as_drawn():
    batch, counts = pack([example(0, 30, 2), example(1, 3, 2, task=5)], overlong="drop")
    assert counts == {"examples": 2, "truncated": 0, "dropped": 1}
    assert batch["task_ids"].tolist() == [0, 5]
    assert len(segments(batch)) == 1


def test_overlong_examples_are_refused_by_name():
    with pytest.raises(
        ValueError, match="task 4 has 30 input and 2 target tokens; the budget is 24"
    ):
        pack([example(0, 30, 2, task=4)], overlong="error")
    with pytest.raises(ValueError, match="no example is left of 1"):
        pack([example(0, 30, 2)], overlong="drop")


@pytest.mark.parametrize("rows", [1, 3, 6])
def test_fixed_rows_give_static_shapes_and_count_the_overflow(rows):
    examples = make([(20, 5)] * 4)
    batch, counts = pack(examples, rows=rows)
    assert batch["input_ids"].shape == (rows, BUDGET[0])
    assert batch["labels"].shape == (rows, BUDGET[1])
    assert counts["dropped"] == max(0, 4 - rows)
    assert len(segments(batch)) == min(rows, 4)
    assert len(batch["task_ids"]) == 4


def test_widths_are_multiples_where_the_budget_allows():
    batch, _ = pack(make([(5, 2)]))
    assert batch["input_ids"].shape[1] == 8
    assert batch["labels"].shape[1] == 8
    batch, _ = pack(make([(24, 9)]))
    assert batch["input_ids"].shape[1] == 24
    assert batch["labels"].shape[1] == 10


@settings(max_examples=20, deadline=None)
@given(st.lists(lengths, min_size=1, max_size=5))
def test_the_collator_counts_over_all_batches(batches):
    collator = PackedCollator(max_input_tokens=12, max_target_tokens=10, overlong="truncate")
    for sizes in batches:
        collator(make(sizes))
    drawn = [size for sizes in batches for size in sizes]
    assert collator.counts() == {
        "examples": len(drawn),
        "truncated": sum(size[0] > 12 for size in drawn),
        "dropped": 0,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_input_tokens": 0}, "max_input_tokens is 0"),
        ({"rows": 0}, "rows is 0"),
        ({"overlong": "ignore"}, "overlong is 'ignore'"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PackedCollator(**{"max_input_tokens": 8, "max_target_tokens": 8, **options})
