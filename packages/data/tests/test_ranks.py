"""Several ranks and workers: the same global batches, also where others stopped in the middle."""

import json
import os
import socket
import subprocess
import sys
import textwrap
from itertools import chain

import pytest

from flan_moe.data.mixing.curriculum import Curriculum
from flan_moe.data.mixing.spec import MixtureSpec, SubMixture
from flan_moe.data.streaming.loader import dataloader

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

SPEC = MixtureSpec(
    name="ranks",
    sub_mixtures={
        name: SubMixture(weight=weight, mixtures=(name,), cap=30)
        for name, weight in {"muffin": 0.5, "t0_sf": 0.2, "niv2": 0.2, "cot": 0.1}.items()
    },
)
# Ten batches of 24 and one of 8; the weights change in the middle of the second epoch.
OPTIONS = {
    "mixture": Curriculum.reweighted(SPEC, {350: {"cot": 1.0, "t0_sf": 0.0}}),
    "epoch_size": 248,
    "pack": False,
    "seed": 4,
}
GLOBAL_BATCH, STOPS = 24, (1, 4, 10)
WORKERS = (0, 1, 2)

RANK = """
    import json, os, sys
    sys.path.insert(0, sys.argv[1])
    from test_ranks import GLOBAL_BATCH, OPTIONS, WORKERS
    from flan_moe.data import dataloader
    states = json.loads(sys.argv[3])
    ranks = int(os.environ["WORLD_SIZE"])

    def make(workers, **changes):
        options = {**OPTIONS, **changes}
        return dataloader(
            sys.argv[2], batch_size=GLOBAL_BATCH // ranks, num_workers=workers, **options
        )

    def ids(batches):
        return [batch["input_ids"].tolist() for batch in batches]

    result = {"runs": [], "resumed": [], "seen": []}
    for workers in WORKERS:
        loader = make(workers)
        first, second = ids(loader), iter(loader)
        head = [next(second) for _ in range(4)]
        state = loader.state_dict()
        result["runs"].append([first, ids(head) + ids(second)])
        result["seen"].append(loader.seen.state_dict())
    result["state"] = state
    for number, state in enumerate(states):
        loader = make(WORKERS[number % len(WORKERS)])
        loader.load_state_dict(state)
        result["resumed"].append(ids(loader))
    try:
        make(0, epoch_size=241)
    except ValueError as error:
        result["refused"] = str(error)
    print(json.dumps(result))
"""


def rows(batch):
    """The examples of a batch without padding, in a comparable order."""
    return sorted([token for token in row if token] for row in batch)


def global_batches(parts):
    """What all ranks together have at each step."""
    return [rows(chain.from_iterable(step)) for step in zip(*parts, strict=True)]


@pytest.fixture(scope="module")
def alone(mini):
    """Two epochs of one rank, its states after some steps of the second, and what it has seen."""
    loader = dataloader(mini, batch_size=GLOBAL_BATCH, **OPTIONS)
    epochs = [[batch["input_ids"].tolist() for batch in loader]]
    states, epochs = [], [*epochs, []]
    for step, batch in enumerate(loader, start=1):
        epochs[1].append(batch["input_ids"].tolist())
        if step in STOPS:
            states.append(loader.state_dict())
    seen = loader.seen.state_dict()
    return {"epochs": [[rows(b) for b in e] for e in epochs], "states": states, "seen": seen}


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, mini, alone):
    """What each rank of a job printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    number = str(request.param)
    shared = {"WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number, "MASTER_ADDR": "127.0.0.1"}
    arguments = [os.path.dirname(__file__), str(mini), json.dumps(alone["states"])]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(RANK), *arguments],
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
        for rank in range(request.param)
    ]
    results = []
    for process in processes:
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
        results.append(json.loads(out.splitlines()[-1]))
    return results


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_batches(mini, alone, workers):
    loader = dataloader(mini, batch_size=GLOBAL_BATCH, num_workers=workers, **OPTIONS)
    for expected in alone["epochs"]:
        assert [rows(batch["input_ids"].tolist()) for batch in loader] == expected


def test_ranks_with_any_number_of_workers_divide_every_batch_of_one_rank(alone, ranks):
    for number, _ in enumerate(WORKERS):
        for epoch, expected in enumerate(alone["epochs"]):
            parts = [rank["runs"][number][epoch] for rank in ranks]
            assert global_batches(parts) == expected


def test_ranks_go_on_where_one_rank_stopped(alone, ranks):
    for number, stop in enumerate(STOPS):
        parts = [rank["resumed"][number] for rank in ranks]
        assert global_batches(parts) == alone["epochs"][1][stop:]


def test_one_rank_goes_on_where_several_stopped(mini, alone, ranks):
    state = ranks[0]["state"]
    assert (state["epoch"], state["sample_in_epoch"]) == (1, 4 * GLOBAL_BATCH)
    loader = dataloader(mini, batch_size=GLOBAL_BATCH, **OPTIONS)
    loader.load_state_dict(state)
    assert [rows(b["input_ids"].tolist()) for b in loader] == alone["epochs"][1][4:]


def test_what_the_ranks_have_seen_adds_up(alone, ranks):
    for number, _ in enumerate(WORKERS):
        total = {}
        for rank in ranks:
            for task, row in rank["seen"][number].items():
                total[task] = [a + b for a, b in zip(total.get(task, [0] * 3), row, strict=True)]
        assert total == alone["seen"]


def test_an_epoch_that_cannot_be_divided_is_refused(ranks):
    for rank in ranks:
        assert (
            rank["refused"] == f"epoch_size is 241; expected a multiple of the {len(ranks)} ranks"
        )
