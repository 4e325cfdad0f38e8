"""metrics.jsonl: every batch once, across interruptions, and nothing that is not a number."""

import json
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
from composer.core import Timestamp

from flan_moe.train.callbacks.metrics_log import MetricsLog, as_number, read_metrics


def state(batch):
    return SimpleNamespace(
        timestamp=Timestamp(
            batch=batch, sample=8 * batch, token=100 * batch, total_wct=timedelta(seconds=batch)
        )
    )


def log(path, batches, start=0):
    logger = MetricsLog(path)
    logger.fit_start(state(start), None)
    for batch in batches:
        logger.log_metrics({"loss/train/total": 1.0 / batch, "time/batch": batch})
        logger.log_metrics({"lr": torch.tensor(0.5), "nan": float("nan"), "text": "no"})
        logger.batch_end(state(batch), None)
    logger.close(state(0), None)


def test_what_is_logged_within_a_batch_shares_a_line(tmp_path):
    log(tmp_path / "m.jsonl", [1, 2])
    assert list(read_metrics(tmp_path / "m.jsonl")) == [
        {
            "batch": b,
            "examples": 8 * b,
            "tokens": 100 * b,
            "seconds": float(b),
            "loss/train/total": 1.0 / b,
            "lr": 0.5,
        }
        for b in (1, 2)
    ]


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path):
    path = tmp_path / "m.jsonl"
    log(path, [1, 2, 3, 4])
    with path.open("a") as file:
        file.write('{"batch": 5, "lo')  # killed while writing
    log(path, [3, 4, 5], start=2)
    assert [line["batch"] for line in read_metrics(path)] == [1, 2, 3, 4, 5]


def test_damage_is_named_by_line(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"batch": 1}\nnonsense\n')
    with pytest.raises(ValueError, match=r"m\.jsonl:2: not JSON"):
        list(read_metrics(path))
    path.write_text(json.dumps([1]) + "\n")
    with pytest.raises(ValueError, match=r"m\.jsonl:1: expected an object with a batch number"):
        list(read_metrics(path))


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (1, 1),
        (1.5, 1.5),
        (torch.tensor(2.0), 2.0),
        (torch.ones(2), None),
        ("1", None),
        (float("inf"), None),
        (True, None),
        (None, None),
    ],
)
def test_only_finite_scalars_are_logged(value, number):
    assert as_number(value) == number
