"""Counting and dividing packed batches."""

import pytest
import torch

from flan_moe.train.batches import data_spec, num_examples, num_tokens, split_rows


@pytest.fixture
def batch():
    """Five raw examples in three rows; row 2 holds one example and padding."""
    encoder = torch.tensor([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 2, 2], [1, 1, 1, 0, 0, 0]])
    decoder = torch.tensor([[1, 2, 2, 0], [1, 1, 2, 2], [1, 0, 0, 0]])
    return {
        "task_ids": torch.tensor([4, 4, 0, 2, 9]),
        "input_ids": torch.where(encoder > 0, 7, 0),
        "attention_mask": encoder > 0,
        "labels": torch.where(decoder > 0, 5, -100),
        "encoder_segments": encoder,
        "decoder_segments": decoder,
    }


def test_samples_are_raw_examples_and_tokens_are_real_ones(batch):
    assert num_examples(batch) == 5
    assert num_tokens(batch) == {"total": 14 + 8, "loss_generating": 8}


@pytest.mark.parametrize(("rows", "sizes"), [(1, [1, 1, 1]), (2, [2, 1]), (3, [3]), (10, [3])])
def test_rows_are_divided_in_order_and_tokens_are_kept(batch, rows, sizes):
    parts = split_rows(batch, rows)
    assert [len(p["input_ids"]) for p in parts] == sizes
    for key in ("input_ids", "labels", "encoder_segments", "decoder_segments", "attention_mask"):
        assert torch.equal(torch.cat([p[key] for p in parts]), batch[key])
    assert sum(num_tokens(p)["loss_generating"] for p in parts) == 8


def test_an_undivided_batch_keeps_its_task_ids(batch):
    assert split_rows(batch, 3) == [batch]


def test_composer_counts_raw_examples_before_it_divides(batch):
    spec = data_spec([batch])
    assert spec.get_num_samples_in_batch(batch) == 5
    assert spec.get_num_tokens_in_batch(batch) == 22
    assert spec.get_num_tokens_in_batch(batch, token_type="loss_generating") == 8
    assert len(spec.split_batch(batch, 1)) == 3
