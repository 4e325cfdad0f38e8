"""Two ranks: they divide an epoch without repeats, and one rank can go on where two stopped."""

import json
import os
import socket
import subprocess
import sys
import textwrap

import pytest

from flan_moe.data.loader import dataloader

RANK = """
    import json, sys
    from flan_moe.data import dataloader
    loader = dataloader(sys.argv[1], batch_size=12, pack=False, seed=4)
    iterator = iter(loader)
    steps = [next(iterator)["input_ids"].tolist() for _ in range(len(loader) // 2)]
    state = loader.state_dict()
    steps += [batch["input_ids"].tolist() for batch in iterator]
    refused = ""
    try:
        dataloader(sys.argv[1], batch_size=12, epoch_size=241)
    except ValueError as error:
        refused = str(error)
    print(json.dumps({"steps": steps, "state": state, "refused": refused}))
"""


def rows(batch):
    """The examples of a batch without padding, in a comparable order."""
    return sorted([token for token in row if token] for row in batch)


@pytest.fixture(scope="module")
def two_ranks(mini):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(RANK), str(mini)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                **shared,
                "MASTER_PORT": str(port),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
            },
        )
        for rank in range(2)
    ]
    results = []
    for process in processes:
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
        results.append(json.loads(out.splitlines()[-1]))
    return results


def test_two_ranks_divide_every_batch_of_one_rank(mini, two_ranks):
    alone = dataloader(mini, batch_size=24, pack=False, seed=4)
    expected = [rows(batch["input_ids"].tolist()) for batch in alone]
    together = [
        rows(first + second)
        for first, second in zip(two_ranks[0]["steps"], two_ranks[1]["steps"], strict=True)
    ]
    assert together == expected


def test_one_rank_goes_on_where_two_stopped(mini, two_ranks):
    state = two_ranks[0]["state"]
    half = len(two_ranks[0]["steps"]) // 2
    assert state["sample_in_epoch"] == half * 24
    alone = dataloader(mini, batch_size=24, pack=False, seed=4)
    alone.load_state_dict(state)
    remaining = [rows(batch["input_ids"].tolist()) for batch in alone]
    expected = [
        rows(first + second)
        for first, second in zip(
            two_ranks[0]["steps"][half:], two_ranks[1]["steps"][half:], strict=True
        )
    ]
    assert remaining == expected


def test_an_epoch_that_cannot_be_divided_is_refused(two_ranks):
    for rank in two_ranks:
        assert rank["refused"] == "epoch_size is 241; expected a multiple of the 2 ranks"
