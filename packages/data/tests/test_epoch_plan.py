"""The plan of epochs: shares that add up, nothing twice before all once, curricula, and scale."""

import time
from collections import Counter

import numpy as np
import pytest

from flan_moe.data.mixing.curriculum import Curriculum
from flan_moe.data.mixing.shares import TaskSize, task_shares
from flan_moe.data.mixing.spec import MixtureSpec, SubMixture
from flan_moe.data.storage.manifest import Manifest
from flan_moe.data.storage.task_table import TaskEntry, TaskTable
from flan_moe.data.streaming.epoch_plan import Cells, EpochPlan, Stage
from flan_moe.data.streaming.mixture_plan import plan_epoch
from flan_moe.data.template_types import TEMPLATE_TYPES

SPEC = MixtureSpec(
    name="test",
    sub_mixtures={
        "dialog": SubMixture(weight=0.1, mixtures=("muffin",), tasks=("dialog_*",), cap=20),
        "rest": SubMixture(
            weight=0.6, mixtures=("muffin",), tasks=("plain_*",), cap=30, temperature=2.0
        ),
        "niv2": SubMixture(
            weight=0.3,
            mixtures=("niv2",),
            template_shares={"zs_opt": 0.5, "fs_opt": 0.5},
            factors={"task_3": 0.3},
        ),
    },
    held_out=("task_1",),
)


def table(mixture, counts, first_id=0):
    """A task table from task name, then samples per setting."""
    entries, start = [], 0
    for number, (name, types) in enumerate(counts.items()):
        kinds = {kind: n for kind, n in zip(TEMPLATE_TYPES, types, strict=False) if n}
        total = sum(types)
        entries.append(
            TaskEntry(
                id=first_id + number,
                name=name,
                start=start,
                count=total,
                cap=30_000,
                max_input_tokens=8,
                max_target_tokens=8,
                types=kinds,
            )
        )
        start += total
    return TaskTable(mixture=mixture, tasks=tuple(entries))


MUFFIN = {"dialog_a": (7, 0, 5), "plain_a": (40, 12), "dialog_b": (90,), "plain_b": (5, 5, 5, 5)}
NIV2 = {f"task_{number}": (11 + number, 3, 20 - number) for number in range(6)}
TABLES = {"muffin": table("muffin", MUFFIN), "niv2": table("niv2", NIV2, first_id=4)}


MANIFEST = {
    "name": "test",
    "vocab_size": 8,
    "tokenizer_sha256": "",
    "pad_token_id": 0,
    "eos_token_id": 1,
    "max_input_tokens": 8,
    "max_target_tokens": 8,
    "seed": 0,
    "tasks": (),
    "dropped": {},
    "files": {},
}


@pytest.fixture
def plan(tmp_path):
    """The function that plans epochs over the two tables above."""
    for name, content in TABLES.items():
        (tmp_path / "train" / name).mkdir(parents=True)
        content.write(tmp_path / "train" / name)
    manifest = Manifest(**MANIFEST, splits={"train": {name: {} for name in TABLES}})

    def make(mixture, epoch_size=None, **options):
        options = {"shuffle": True, **options}
        return plan_epoch(tmp_path, manifest, "train", None, epoch_size, mixture=mixture, **options)

    return make


def explained(spec):
    """Task and setting, then the share that the specification explains."""
    sizes = [
        TaskSize(name=task.name, mixture=name, count=task.count, types=task.types)
        for name, content in TABLES.items()
        for task in content.tasks
    ]
    return {
        (share.task.name, kind): value
        for share in task_shares(spec, sizes)
        for kind, value in share.types.items()
    }


def draw(plan, epoch, seed=0):
    """Segment by segment, task and setting of every sample, and the samples themselves."""
    result = []
    for _, chosen in plan.choose(epoch, seed):
        owners, samples = [], list(zip(chosen.stream.tolist(), chosen.sample.tolist(), strict=True))
        for stream, sample in samples:
            task = next(
                t
                for t in list(plan.tables.values())[stream].tasks
                if t.start <= sample < t.start + t.count
            )
            left = sample - task.start
            for kind, count in task.types.items():
                if left < count:
                    owners.append((task.name, kind))
                    break
                left -= count
        result.append((Counter(owners), samples))
    return result


@pytest.mark.parametrize("epoch_size", [10, 137, 1000])
def test_every_epoch_has_each_task_and_setting_within_one_of_its_share(plan, epoch_size):
    made, shares = plan(SPEC, epoch_size), explained(SPEC)
    tasks = {name for name, _ in shares}
    for epoch in (0, 1, 7):
        ((found, _),) = draw(made, epoch)
        assert found.total() == epoch_size
        assert set(found) <= set(shares)
        for key, share in shares.items():
            assert abs(found[key] - share * epoch_size) < 1 + 1e-3
        for task in tasks:
            drawn = sum(n for (name, _), n in found.items() if name == task)
            exact = sum(s for (name, _), s in shares.items() if name == task)
            assert abs(drawn - exact * epoch_size) < 1 + 1e-3
        subs = {"dialog": 0.1, "plain": 0.6, "task": 0.3}
        for prefix, weight in subs.items():
            drawn = sum(n for (name, _), n in found.items() if name.startswith(prefix))
            assert abs(drawn - weight * epoch_size) < 1 + 1e-3, "sub-mixtures within a mixture too"
    assert ("task_1", "zs_opt") not in shares
    assert ("task_2", "zs_noopt") not in shares


@pytest.mark.parametrize("epoch_size", [10, 137, 1000])
def test_no_sample_comes_again_before_all_of_its_task_and_setting_have_come(plan, epoch_size):
    changes = {epoch_size + 3: {"niv2": 0.8}, 2 * epoch_size + 5: {"dialog": 0.0}}
    for mixture in (SPEC, Curriculum.reweighted(SPEC, changes)):
        made, seen = plan(mixture, epoch_size), Counter()
        for epoch in range(5):
            for _, samples in draw(made, epoch):
                seen.update(samples)
            cells = made.cells
            for stream, start, count in zip(cells.stream, cells.start, cells.count, strict=True):
                uses = [seen[stream, sample] for sample in range(start, start + count)]
                assert max(uses) - min(uses) <= 1


def test_what_was_used_before_an_epoch_is_what_the_epochs_before_drew(plan):
    stages = {23: {"niv2": 0.8}, 25: {"niv2": 0.1}, 40: {"rest": 0}, 100: {"rest": 2}, 205: {}}
    for made in (plan(SPEC, 20), plan(Curriculum.reweighted(SPEC, stages), 20)):
        used = np.zeros(len(made.cells.count), int)
        for epoch in range(15):
            np.testing.assert_array_equal(made.used_before(epoch, 9), used)
            segments = made.segments(epoch)
            assert sum(segment.length for segment in segments) == 20
            used = used + sum(made.quotas(epoch, segment, 9) for segment in segments)


def test_a_curriculum_changes_the_shares_at_the_sample_it_names(plan):
    later = Curriculum.reweighted(SPEC, {1300: {"niv2": 0.0, "dialog": 0.4}})
    made = plan(later, 1000)
    assert [(s.begin, s.length, s.stage) for s in made.segments(0)] == [(0, 1000, 0)]
    assert [(s.begin, s.length, s.stage) for s in made.segments(1)] == [(0, 300, 0), (300, 700, 1)]
    assert [(s.begin, s.length, s.stage) for s in made.segments(2)] == [(0, 1000, 1)]
    before, after = draw(made, 1)
    for (found, _), spec, length in (
        (before, SPEC, 300),
        (after, later.stages[1300], 700),
    ):
        shares = explained(spec)
        assert set(found) <= set(shares)
        for key, share in shares.items():
            assert abs(found[key] - share * length) < 1 + 1e-3


def test_seeds_and_epochs_choose_differently_and_repeatably(plan):
    def samples(epoch, seed):
        return draw(plan(SPEC, 30), epoch, seed)[0][1]

    assert samples(0, 0) == samples(0, 0)
    assert samples(0, 0) != samples(1, 0)
    assert samples(0, 0) != samples(0, 1)


def test_an_epoch_by_default_is_the_capped_size(plan):
    # dialog: min(12, 20) + min(90, 20); rest: min(52, 30) + 20; niv2: zs_opt and fs_opt, no cap
    niv2 = sum(sum(types) - types[1] for name, types in NIV2.items() if name != "task_1")
    # the third setting of the tables is fs_opt
    assert TEMPLATE_TYPES[:3] == ("zs_opt", "zs_noopt", "fs_opt")
    assert plan(SPEC).epoch_size == 12 + 20 + 30 + 20 + niv2


@pytest.mark.parametrize(
    ("mixture", "options", "message"),
    [
        (
            MixtureSpec(name="e", sub_mixtures=SPEC.sub_mixtures, held_out=("@mlu",)),
            {},
            "mixture 'e': held_out: .*'mlu'",
        ),
        ("flan2023", {}, "flan2023"),
        (
            Curriculum.reweighted(SPEC, {5: {"niv2": 1.0}}),
            {"shuffle": False},
            "mixture is a curriculum and shuffle is off",
        ),
        (
            MixtureSpec(name="e", sub_mixtures={"x": SubMixture(weight=1, mixtures=("cot",))}),
            {},
            "mixture 'e': none of the 10 tasks gets a share",
        ),
    ],
)
def test_bad_mixtures_are_refused(plan, mixture, options, message):
    with pytest.raises(ValueError, match=message):
        plan(mixture, 10, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Curriculum(stages={}), "stages is empty"),
        (lambda: Curriculum(stages={3: SPEC}), "the first begins at 3; expected 0"),
        (lambda: Curriculum(stages={0: SPEC, 9: SPEC, 4: SPEC}), "4 after 9; expected ascending"),
        (lambda: Curriculum(stages={0: SPEC, 1.5: SPEC}), "1.5; expected a whole number"),
        (lambda: Curriculum.reweighted(SPEC, {4: {"cot": 1}}), "no sub-mixture 'cot' in mixture"),
        (lambda: Curriculum.reweighted(SPEC, {4: {"niv2": -1}}), "weight is -1"),
    ],
)
def test_bad_curricula_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_200k_samples_of_1836_tasks_have_the_shares_that_are_explained(tmp_path):
    """Pearson's statistic over tasks and settings, far below that of a random draw."""
    rng = np.random.default_rng(1)
    spec = MixtureSpec(
        name="flan",
        sub_mixtures={"all": SubMixture(weight=1.0, mixtures=("niv2",), cap=5000, temperature=1.5)},
    )
    counts = rng.pareto(1.0, 1836) * 400 + 10
    content = table("niv2", {f"task_{n}": (int(c), 5, 3, int(c)) for n, c in enumerate(counts)})
    (tmp_path / "train" / "niv2").mkdir(parents=True)
    content.write(tmp_path / "train" / "niv2")
    manifest = MANIFEST | {"splits": {"train": {"niv2": {}}}}
    made = plan_epoch(
        tmp_path, Manifest(**manifest), "train", None, 50_000, shuffle=True, mixture=spec
    )
    drawn = np.zeros(len(made.cells.count))
    for epoch in range(4):
        for _, chosen in made.choose(epoch, 0):
            cells = np.searchsorted(made.cells.start, chosen.sample, side="right") - 1
            drawn += np.bincount(cells, minlength=len(drawn))
    sizes = [
        TaskSize(name=task.name, mixture="niv2", count=task.count, types=task.types)
        for task in content.tasks
    ]
    shares = [s for share in task_shares(spec, sizes) for s in share.types.values()]
    exact = np.array(shares) * 200_000
    assert drawn.sum() == 200_000
    assert np.sum((drawn - exact) ** 2 / exact) < 0.5 * (len(exact) - 1)


def test_a_whole_flan_collection_is_planned_in_seconds():
    """1,836 tasks in four settings, 15M samples; far into the training, too."""
    rng = np.random.default_rng(0)
    weights = rng.pareto(1.0, 1836) + 0.05
    sizes = (weights / weights.sum() * 15e6 / 4).astype(int) + 4
    names = {f"task_{number}": (int(size),) * 4 for number, size in enumerate(sizes)}
    tables = {"niv2": table("niv2", names)}
    cells = Cells.of(tuple(tables.values()), by_setting=True)
    assert len(cells.count) == 4 * 1836
    assert cells.count.sum() > 14.9e6
    rates = np.minimum(cells.count, 7500).astype(float)
    stage = Stage(begin=0, shares=rates / rates.sum(), order=np.arange(len(rates)))
    made = EpochPlan(
        tables=tables, cells=cells, stages=(stage,), epoch_size=5_000_000, description=""
    )
    start = time.process_time()
    ((segment, chosen),) = made.choose(10_000, seed=1)
    assert time.process_time() - start < 10
    assert len(chosen.sample) == segment.length == 5_000_000
    np.testing.assert_array_equal(
        np.bincount(np.searchsorted(cells.start, chosen.sample, side="right") - 1),
        made.quotas(10_000, segment, 1),
    )
