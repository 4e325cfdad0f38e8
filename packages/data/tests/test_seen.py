"""What has been seen of each task: exact at any moment, and across a resume."""

from collections import Counter

import numpy as np
import pytest

from flan_moe.data.storage.manifest import read_manifest
from flan_moe.data.storage.shards import read_mds
from flan_moe.data.streaming.loader import dataloader
from flan_moe.data.streaming.seen import Seen, SeenTasks

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

OPTIONS = {"batch_size": 24, "epoch_size": 240}


def stored(mini):
    """Task name, then samples and tokens in the shards."""
    names = {task["id"]: task["name"] for task in read_manifest(mini).tasks}
    totals = {}
    for folder in sorted((mini / "train").iterdir()):
        for sample in read_mds(folder):
            total = totals.setdefault(names[sample["task"]], Counter())
            total.update(
                samples=1,
                input_tokens=len(sample["input_ids"]),
                target_tokens=len(sample["labels"]),
            )
    return {name: Seen(**total) for name, total in totals.items()}


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_of_everything_is_what_is_stored(mini, workers):
    loader = dataloader(mini, batch_size=24, num_workers=workers)
    for batch in loader:
        assert "example_measures" not in batch
    assert loader.seen.counts() == loader.seen.total() == stored(mini)


@pytest.mark.parametrize("workers", [0, 2])
def test_counts_go_with_the_position_and_over_a_resume(mini, workers):
    whole = dataloader(mini, **OPTIONS)
    batches = [batch for _ in range(2) for batch in whole]

    before = dataloader(mini, **OPTIONS, num_workers=workers)
    list(before)
    iterator = iter(before)
    for _ in range(3):
        next(iterator)
    delivered = Counter(task for batch in batches[:13] for task in batch["task_ids"].tolist())
    names = {task["id"]: task["name"] for task in read_manifest(mini).tasks}
    found = {name: seen.samples for name, seen in before.seen.counts().items()}
    assert found == {names[task]: count for task, count in delivered.items()}, "nothing read ahead"

    after = dataloader(mini, **OPTIONS)
    after.load_state_dict(before.state_dict())
    after.seen.load_state_dict(before.seen.state_dict())
    assert after.seen.counts() == before.seen.counts()
    list(after)
    assert after.seen.counts() == whole.seen.counts()


def test_tokens_are_counted_as_trained_on(mini):
    everything = stored(mini)
    cut = dataloader(mini, batch_size=24, max_target_tokens=4)
    tokens = sum(int((batch["labels"] != -100).sum()) for batch in cut)
    overlong = sum(seen.overlong for seen in cut.seen.counts().values())
    assert overlong == cut.collate_fn.counts()["truncated"] > 0
    assert sum(seen.target_tokens for seen in cut.seen.counts().values()) == tokens
    assert tokens < sum(seen.target_tokens for seen in everything.values())
    dropped = dataloader(mini, batch_size=24, max_target_tokens=4, overlong="drop")
    tokens = sum(int(batch["attention_mask"].sum()) for batch in dropped)
    counts = dropped.seen.counts()
    overlong = sum(seen.overlong for seen in counts.values())
    assert overlong == dropped.collate_fn.counts()["dropped"] > 0
    assert sum(seen.input_tokens for seen in counts.values()) == tokens
    assert sum(seen.samples for seen in counts.values()) == 18 * 40
    static = dataloader(mini, batch_size=24, rows=2)  # too few for most of a batch
    tokens = sum(int((batch["labels"] != -100).sum()) for batch in static)
    assert sum(seen.target_tokens for seen in static.seen.counts().values()) == tokens
    assert static.collate_fn.counts()["dropped"] > 0


def test_a_sample_of_an_unlisted_task_is_refused():
    seen = SeenTasks({7: "a", 10**15: "b"})  # ids may be anything
    seen.add(np.array([7, 10**15, 7]), np.array([[1, 2, 0], [3, 4, 1], [5, 6, 1]]))
    assert {name: vars(of) for name, of in seen.counts().items()} == {
        "a": {"samples": 2, "input_tokens": 6, "target_tokens": 8, "overlong": 1},
        "b": {"samples": 1, "input_tokens": 3, "target_tokens": 4, "overlong": 1},
    }
    with pytest.raises(ValueError, match="a sample is of task 8, which the manifest does not"):
        seen.add(np.array([8]), np.array([[1, 1, 0]]))


def test_counts_of_an_unknown_task_are_refused():
    seen = SeenTasks({0: "a"})
    with pytest.raises(ValueError, match="counts of task 'b': no such task"):
        seen.load_state_dict({"b": [1, 2, 3, 0]})
