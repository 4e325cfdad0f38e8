"""The mixture: exact quotas, nothing twice before everything once, and exact resuming."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest
import torch

from flan_moe.data.mixing.curriculum import Curriculum
from flan_moe.data.mixing.shares import TaskSize, task_shares
from flan_moe.data.mixing.spec import MixtureSpec, SubMixture
from flan_moe.data.storage.manifest import read_manifest
from flan_moe.data.storage.shards import read_mds
from flan_moe.data.storage.task_table import read_task_table
from flan_moe.data.streaming.loader import dataloader
from flan_moe.data.streaming.mixture import build_mixture_dataset

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

MIXTURES = ("muffin", "t0_sf", "niv2", "cot")
WEIGHTS = {"muffin": 0.52, "t0_sf": 0.15, "niv2": 0.3, "cot": 0.03}


def sample_ids(dataset, epoch):
    """The epoch's chosen samples as streaming asks for them."""
    units, ids = dataset.resample_streams(epoch)
    assert units.sum() == len(ids) == dataset.epoch_size
    return ids


def tasks_of(mini):
    """Global sample id, then task id, in the order of the manifest's mixtures."""
    owner = []
    for mixture in sorted(p.name for p in (mini / "train").iterdir()):
        owner += [sample["task"] for sample in read_mds(mini / "train" / mixture)]
    return np.array(owner)


def contents(batches):
    """Everything in a run of batches, comparable."""
    return [{key: value.tolist() for key, value in batch.items()} for batch in batches]


def test_an_epoch_by_default_is_every_sample_once(mini):
    dataset = build_mixture_dataset(mini, batch_size=16)
    assert dataset.epoch_size == 18 * 40
    for epoch in range(3):
        assert sorted(sample_ids(dataset, epoch)) == list(range(18 * 40))


def test_weights_decide_the_mixtures_and_counts_the_tasks(mini):
    dataset = build_mixture_dataset(mini, batch_size=10, weights=WEIGHTS, epoch_size=400)
    owner = tasks_of(mini)
    tables = {mixture: read_task_table(mini / "train" / mixture) for mixture in MIXTURES}
    for epoch in range(4):
        drawn = Counter(owner[sample_ids(dataset, epoch)].tolist())
        for mixture, weight in WEIGHTS.items():
            counts = [drawn[task.id] for task in tables[mixture].tasks]
            assert sum(counts) == round(weight * 400)
            assert max(counts) - min(counts) <= 1, "equal counts give equal quotas"


def test_caps_bound_a_tasks_rate(mini_copy):
    file = mini_copy / "train" / "niv2" / "tasks.json"
    table = json.loads(file.read_text())
    table["tasks"][0]["cap"] = 10
    file.write_text(json.dumps(table))
    manifest = json.loads((mini_copy / "manifest.json").read_text())
    manifest["files"]["train/niv2/tasks.json"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (mini_copy / "manifest.json").write_text(json.dumps(manifest))
    only = {"muffin": 0, "t0_sf": 0, "niv2": 1, "cot": 0}
    dataset = build_mixture_dataset(mini_copy, batch_size=10, weights=only)
    assert dataset.epoch_size == 10 + 3 * 40
    assert dataset.quotas(0, 0).tolist() == [10, 40, 40, 40]
    half = build_mixture_dataset(mini_copy, batch_size=10, weights=only, epoch_size=65)
    assert half.quotas(0, 0).tolist() == [5, 20, 20, 20]


@pytest.mark.parametrize("epoch_size", [70, 400, 720, 1000])
def test_no_sample_comes_again_before_all_of_its_task_have_come(mini, epoch_size):
    dataset = build_mixture_dataset(mini, batch_size=10, epoch_size=epoch_size)
    seen, owner = Counter(), tasks_of(mini)
    for epoch in range(6):
        seen.update(sample_ids(dataset, epoch).tolist())
        by_task = {task: [] for task in set(owner.tolist())}
        for sample, task in enumerate(owner.tolist()):
            by_task[task].append(seen[sample])
        for uses in by_task.values():
            assert max(uses) - min(uses) <= 1
    assert seen.total() == 6 * epoch_size


def test_every_epoch_has_its_own_order_and_the_seed_decides_it(mini):
    def order(seed, epochs=2):
        loader = dataloader(mini, batch_size=16, seed=seed)
        return [[batch["input_ids"].tolist() for batch in loader] for _ in range(epochs)]

    first = order(seed=0)
    assert first == order(seed=0)
    assert first[0] != first[1]
    assert first != order(seed=1)


def test_batches_mix_tasks(mini):
    distinct = [len(set(b["task_ids"].tolist())) for b in dataloader(mini, batch_size=32)]
    assert np.mean(distinct) > 10


def test_without_shuffling_every_epoch_is_the_same(mini):
    loader = dataloader(mini, batch_size=16, split="validation", shuffle=False)
    first, second = contents(loader), contents(loader)
    assert first == second
    assert sum(len(batch["task_ids"]) for batch in first) == 18 * 8
    part = dataloader(mini, batch_size=16, split="validation", shuffle=False, epoch_size=36)
    assert contents(part) == contents(part)


@pytest.mark.parametrize("workers", [2, 3])
def test_the_order_does_not_depend_on_the_number_of_workers(mini, workers):
    alone = dataloader(mini, batch_size=24, epoch_size=400, weights=WEIGHTS)
    several = dataloader(mini, batch_size=24, epoch_size=400, weights=WEIGHTS, num_workers=workers)
    for _ in range(2):
        assert contents(alone) == contents(several)
    assert alone.collate_fn.counts() == several.collate_fn.counts()
    assert several.collate_fn.counts()["examples"] == 800


@pytest.mark.parametrize(
    ("stop", "workers_before", "workers_after"), [(1, 0, 0), (7, 0, 2), (7, 2, 0), (17, 2, 3)]
)
def test_a_resumed_run_equals_an_uninterrupted_one(mini, stop, workers_before, workers_after):
    options = {"batch_size": 24, "epoch_size": 400, "weights": WEIGHTS, "seed": 3}
    whole = dataloader(mini, **options)
    expected = [contents(whole) for _ in range(3)]

    before = dataloader(mini, **options, num_workers=workers_before)
    assert contents(before) == expected[0]
    iterator = iter(before)
    assert contents(next(iterator) for _ in range(stop)) == expected[1][:stop]
    state = json.loads(json.dumps(before.state_dict()))
    assert state["sample_in_epoch"] == min(24 * stop, 400), "raw examples, not packed rows"
    assert state["epoch"] == 1

    after = dataloader(mini, **options, num_workers=workers_after)
    after.load_state_dict(state)
    assert contents(after) == expected[1][stop:]
    assert contents(after) == expected[2]


def test_a_state_can_be_saved_again_after_resuming(mini):
    options = {"batch_size": 24, "epoch_size": 240}
    expected = contents(dataloader(mini, **options))
    states = [None]
    for stop in (3, 2, 4):
        loader = dataloader(mini, **options)
        if states[-1] is not None:
            loader.load_state_dict(states[-1])
            assert loader.state_dict() == states[-1], "before iterating"
        iterator = iter(loader)
        for _ in range(stop):
            next(iterator)
        states.append(loader.state_dict())
    last = dataloader(mini, **options)
    last.load_state_dict(states[-1])
    assert contents(last) == expected[9:]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_trainer_that_saves_at_the_end_of_an_epoch_goes_on_with_the_next(mini, workers):
    """Composer saves after an epoch with ``dataset.state_dict(0, True)``."""
    options = {"batch_size": 24, "epoch_size": 240}
    whole = dataloader(mini, **options)
    expected = [contents(whole) for _ in range(3)]

    before = dataloader(mini, **options, num_workers=workers)
    assert before.dataset.state_dict(0, True)["epoch"] == 0, "nothing has been read"
    assert contents(before) == expected[0]
    state = before.dataset.state_dict(0, True)
    assert (state["epoch"], state["sample_in_epoch"]) == (1, 0)

    after = dataloader(mini, **options, num_workers=workers)
    after.dataset.load_state_dict(state)
    assert after.dataset.state_dict(0, True) == state
    assert contents(after) == expected[1]
    state = after.dataset.state_dict(0, True)
    assert state["epoch"] == 2
    last = dataloader(mini, **options, num_workers=workers)
    last.dataset.load_state_dict(state)
    assert contents(last) == expected[2]


def test_a_trainer_that_counts_for_itself_resumes_in_the_middle(mini):
    options = {"batch_size": 24, "epoch_size": 240}
    expected = contents(dataloader(mini, **options))
    before = dataloader(mini, **options)
    iterator = iter(before)
    drawn = sum(len(next(iterator)["task_ids"]) for _ in range(4))
    after = dataloader(mini, **options)
    after.dataset.load_state_dict(before.dataset.state_dict(drawn, True))
    assert contents(after) == expected[4:]


def test_a_state_of_another_mixture_is_refused(mini, mini_copy):
    options = {"batch_size": 24, "epoch_size": 240}
    state = dataloader(mini, **options).state_dict()
    dataloader(mini, **options, seed=9).load_state_dict(state)  # the seed is part of the state
    dataloader(mini_copy, **options).load_state_dict(state)  # the same data elsewhere
    for changed in (
        dataloader(mini, **{**options, "epoch_size": 264}),
        dataloader(mini, **options, weights=WEIGHTS),
        dataloader(mini, **options, split="validation"),
        dataloader(mini, **options, shuffle=False),
    ):
        with pytest.raises(ValueError, match="resumes only on the same data"):
            changed.load_state_dict(state)
    del state["mixture_fingerprint"]
    with pytest.raises(ValueError, match="mixture_fingerprint is None"):
        dataloader(mini, **options).load_state_dict(state)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("epoch", -1, "epoch is -1; expected a whole number"),
        ("epoch", None, "epoch is None"),
        ("sample_in_epoch", -8, "sample_in_epoch is -8"),
        ("sample_in_epoch", 3.5, r"sample_in_epoch is 3\.5"),
        ("sample_in_epoch", 241, "sample_in_epoch is 241; expected at most 240"),
        ("num_canonical_nodes", 2, "num_canonical_nodes is 2; expected 1"),
        ("shuffle_seed", "0", "shuffle_seed is '0'"),
    ],
)
def test_a_damaged_state_is_refused_and_not_read_as_another_position(mini, key, value, message):
    loader = dataloader(mini, batch_size=24, epoch_size=240)
    loader.load_state_dict(loader.state_dict())  # before the first epoch
    next(iter(loader))
    state = loader.state_dict()
    with pytest.raises(ValueError, match=f"data state: {message}"):
        loader.load_state_dict({**state, key: value})
    with pytest.raises(ValueError, match=f"data state: {key} is None"):
        loader.load_state_dict({name: state[name] for name in state if name != key})
    loader.load_state_dict(state)


SPEC = MixtureSpec(
    name="test",
    sub_mixtures={
        "big": SubMixture(weight=0.7, mixtures=("muffin", "t0_sf"), cap=25),
        "small": SubMixture(weight=0.3, mixtures=("niv2", "cot"), temperature=3.0),
    },
)


def chi_squared(mini, spec, drawn):
    """Statistic of the tasks that were drawn against the shares of a mixture; 99.9 % bound."""
    sizes = [
        TaskSize(name=task.name, mixture=name, count=task.count, types=task.types)
        for name in MIXTURES
        for task in read_task_table(mini / "train" / name).tasks
    ]
    expected = {share.task.name: share.share for share in task_shares(spec, sizes)}
    total = sum(drawn.values())
    statistic = sum((drawn[n] - total * s) ** 2 / (total * s) for n, s in expected.items())
    freedom = len(expected) - 1
    cube = 1 - 2 / (9 * freedom) + 3.09 * np.sqrt(2 / (9 * freedom))  # Wilson and Hilferty
    return statistic, freedom * cube**3


def test_what_is_seen_has_the_shares_that_are_explained(mini):
    loader = dataloader(mini, batch_size=40, mixture=SPEC, epoch_size=1000)
    for _ in range(3):
        list(loader)
    drawn = {name: seen.samples for name, seen in loader.seen.counts().items()}
    assert sum(drawn.values()) == 3000
    statistic, bound = chi_squared(mini, SPEC, drawn)
    assert statistic < bound / 10, "quotas are closer to the shares than a random draw"
    other = Curriculum.reweighted(SPEC, {1: {"small": 0.4}}).stages[1]
    statistic, bound = chi_squared(mini, other, drawn)
    assert statistic > bound, "so few samples tell 0.30 from 0.36"


def test_a_specification_is_part_of_the_fingerprint(mini):
    options = {"batch_size": 24, "epoch_size": 240}
    state = dataloader(mini, **options, mixture=SPEC).state_dict()
    again = MixtureSpec(name="renamed", sub_mixtures=SPEC.sub_mixtures)
    dataloader(mini, **options, mixture=again).load_state_dict(state)
    for changed in (
        Curriculum.reweighted(SPEC, {500: {"small": 0.5}}),
        Curriculum.reweighted(SPEC, {1: {"small": 0.30001}}).stages[1],
        None,
    ):
        with pytest.raises(ValueError, match="resumes only on the same data"):
            dataloader(mini, **options, mixture=changed).load_state_dict(state)


def test_a_curriculum_changes_between_two_samples_of_an_epoch(mini):
    names = {task["id"]: task["mixture"] for task in read_manifest(mini).tasks}
    change = Curriculum.reweighted(SPEC, {500: {"big": 0.0}})
    loader = dataloader(mini, batch_size=20, mixture=change, epoch_size=240)
    drawn = [names[task] for _ in range(3) for b in loader for task in b["task_ids"].tolist()]
    assert {"muffin", "t0_sf"} <= set(drawn[:500])
    assert set(drawn[500:]) == {"niv2", "cot"}
    assert abs(sum(name in ("niv2", "cot") for name in drawn[:500]) - 0.3 * 500) < 2


@pytest.mark.parametrize("stop", [1, 3, 9, 10, 12])
def test_resuming_around_a_change_of_the_mixture(mini, stop):
    """The change is in batch 10 of the second epoch; every stop gives the same rest."""
    change = Curriculum.reweighted(SPEC, {240 + 230: {"small": 2.0}})
    options = {"batch_size": 24, "mixture": change, "epoch_size": 312, "seed": 8}
    whole = dataloader(mini, **options)
    expected = [contents(whole) for _ in range(3)]
    before = dataloader(mini, **options)
    contents(before)
    iterator = iter(before)
    for _ in range(stop):
        next(iterator)
    after = dataloader(mini, **options)
    after.load_state_dict(before.state_dict())
    assert contents(after) == expected[1][stop:]
    assert contents(after) == expected[2]


def test_the_loaders_batches_are_packed_examples(mini):
    loader = dataloader(mini, batch_size=48)
    batch = next(iter(loader))
    assert list(batch) == [
        "task_ids",
        "input_ids",
        "attention_mask",
        "encoder_segments",
        "labels",
        "decoder_segments",
    ]
    assert len(batch["task_ids"]) == 48
    assert len(batch["input_ids"]) < 30
    assert int(batch["encoder_segments"].max()) > 1
    found = sum(int(row.max()) for row in batch["encoder_segments"])
    assert found == 48
    assert torch.equal(batch["attention_mask"], (batch["encoder_segments"] > 0).long())
    static = next(iter(dataloader(mini, batch_size=48, rows=16)))
    assert static["input_ids"].shape == (16, 256)


def test_overlong_examples_are_refused_before_training(mini):
    dataloader(mini, batch_size=8, overlong="error")
    with pytest.raises(ValueError, match=r"max_target_tokens is 8, but mixture 'cot', task '\w+'"):
        dataloader(mini, batch_size=8, overlong="error", max_target_tokens=8)
    cut = dataloader(mini, batch_size=8, max_target_tokens=8)
    list(cut)
    assert cut.collate_fn.counts()["truncated"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 8, "epoch_size": 0}, "epoch_size is 0"),
        ({"batch_size": 8, "split": "test"}, r"split is 'test'; .* has \['train', 'validation'\]"),
        ({"batch_size": 8, "weights": {"flan": 1}}, r"weights\.flan: no such mixture"),
        ({"batch_size": 8, "weights": WEIGHTS, "epoch_size": 8}, "'cot' with share 0.03"),
        ({"batch_size": 8, "num_workers": -1}, "num_workers is -1"),
        ({"batch_size": 8, "num_workers": True}, "num_workers is True"),
        ({"batch_size": "8"}, "batch_size is '8'; expected a positive whole number"),
        ({"batch_size": 2.5}, r"batch_size is 2\.5"),
        ({"batch_size": 8, "epoch_size": 16.0}, r"epoch_size is 16\.0"),
        ({"batch_size": 8, "seed": -1}, "seed is -1; expected a whole number, 0 or more"),
        ({"batch_size": 8, "seed": 1.5}, r"seed is 1\.5"),
        ({"batch_size": 8, "rows": 1.5}, r"rows is 1\.5"),
        ({"batch_size": 8, "max_input_tokens": 0}, "max_input_tokens is 0"),
        ({"batch_size": 8, "max_target_tokens": 0}, "max_target_tokens is 0"),
        ({"batch_size": 8, "max_input_tokens": 64.0}, r"max_input_tokens is 64\.0"),
        ({"batch_size": 8, "weights": WEIGHTS, "mixture": SPEC}, "weights and mixture are both"),
    ],
)
def test_bad_arguments_are_named(mini, options, message):
    with pytest.raises(ValueError, match=message):
        dataloader(mini, **options)


def test_damaged_shards_are_refused_before_training(mini_copy):
    shard = mini_copy / "train" / "cot" / "shard.00000.mds"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    dataloader(mini_copy, batch_size=8, verify=False)
    for verify in (True, None):  # small directories are verified without asking
        with pytest.raises(ValueError, match=r"train/cot/shard\.00000\.mds: damaged shard"):
            dataloader(mini_copy, batch_size=8, verify=verify)
    shard.write_bytes(data[:-5])
    with pytest.raises(ValueError, match=r"train/cot/shard\.00000\.mds: \d+ bytes"):
        dataloader(mini_copy, batch_size=8, verify=False)
