"""What a mixture comes to, on registered sizes and on a data directory."""

import csv
import json

import pytest

from flan_moe.data import cli
from flan_moe.data.mixing.apply import apply_mixture
from flan_moe.data.mixing.explain import explain_mixture
from flan_moe.data.mixing.load import load_mixture
from flan_moe.data.mixing.shares import TaskSize
from flan_moe.data.mixing.sizes import directory_sizes, registered_sizes, without_size
from flan_moe.data.mixing.spec import MixtureSpec, SubMixture
from flan_moe.data.registry import load_registry


@pytest.fixture(scope="module")
def registry():
    return load_registry()


def one(held_out=(), **changes):
    sub = SubMixture(**{"weight": 1, "mixtures": ("cot",)} | changes)
    return MixtureSpec(name="test", sub_mixtures={"only": sub}, held_out=held_out)


def size(name, count=100, mixture="cot", **types):
    return TaskSize(name=name, mixture=mixture, count=count, types=types)


def test_registered_sizes_give_the_expected_epochs_before_anything_is_built(registry):
    spec = load_mixture("flan2022")
    found = explain_mixture(spec, registered_sizes(registry), samples=1_000_000, registry=registry)
    tasks = {task.share.task.name: task for task in found.tasks}
    assert len(tasks) == 1838 + 11 + 57 - 7
    # The nine tasks have 74,730 samples, their inversions count 0.3: 50,000 of 97,149.
    gsm8k = tasks["cot_gsm8k"]
    assert gsm8k.samples == pytest.approx(50_000 * 7470 / 97_149)
    assert gsm8k.epochs == pytest.approx(50_000 / 97_149)
    assert tasks["cot_input_inversion_gsm8k"].epochs == pytest.approx(15_000 / 97_149)
    assert sum(task.samples for task in found.tasks) == pytest.approx(1_000_000)
    totals = {sub.name: sub for sub in found.sub_mixtures}
    assert [totals[name].tasks for name in ("flan2021", "t0", "niv2", "cot", "dialog")] == [
        71,
        193,
        1556,
        18,
        4,
    ]
    assert totals["niv2"].held_out == 57
    assert totals["cot"].size == 2 * 74_730
    assert totals["cot"].samples == pytest.approx(50_000)
    assert without_size(spec, registry) == ("trivia_qa_wiki_missing", "task_master")
    assert len(without_size(load_mixture("muffin"), registry)) == 7


def test_tasks_come_by_sub_mixture_and_share_and_those_with_nothing_last(registry):
    spec = load_mixture("flan2022_clean")
    found = explain_mixture(spec, registered_sizes(registry), samples=1000, registry=registry).tasks
    with_share = [task for task in found if not task.reason]
    assert found[: len(with_share)] == tuple(with_share)
    order = [task.share.sub_mixture for task in with_share]
    assert order == sorted(order, key=list(spec.sub_mixtures).index)
    first = [task.share.share for task in with_share if task.share.sub_mixture == "niv2"]
    assert first == sorted(first, reverse=True)
    assert sum(task.share.held_out for task in found) == 29 + 57 + 5 + 6


def test_every_task_with_nothing_says_why(registry):
    spec = MixtureSpec(
        name="test",
        sub_mixtures={
            "a": SubMixture(weight=1, mixtures=("cot",), template_shares={"zs_opt": 1}),
            "b": SubMixture(weight=0, mixtures=("niv2",)),
        },
        held_out=("@gsm8k", "cot_ecqa"),
    )
    tasks = [
        size("cot_creak", zs_opt=100),
        size("cot_gsm8k", zs_opt=100),
        size("cot_ecqa", zs_opt=100),
        size("cot_qasc", fs_opt=100),
        size("task001_quoref_question_generation", mixture="niv2"),
        size("rte", mixture="muffin"),
    ]
    found = explain_mixture(spec, tasks, samples=10, registry=registry)
    reasons = {task.share.task.name: task.reason for task in found.tasks}
    assert reasons["cot_creak"] == ""
    assert reasons["cot_gsm8k"].startswith("held out: gsm8k: the 7,473 training questions")
    assert reasons["cot_ecqa"] == "held out: named by held_out, 'cot_ecqa'"
    assert reasons["cot_qasc"] == "has none of the settings that a takes"
    assert reasons["task001_quoref_question_generation"] == "b weighs 0"
    assert reasons["rte"] == "in no sub-mixture"


def test_epochs_differ_by_setting_where_the_data_do(registry):
    # 900 samples in halves: 450 of 10 zero-shot ones, 450 of 90 few-shot ones.
    spec = one(template_shares={"zs_opt": 0.5, "fs_opt": 0.5})
    tasks = [size("cot_creak", 100, zs_opt=10, fs_opt=90)]
    (task,) = explain_mixture(spec, tasks, samples=900, registry=registry).tasks
    assert task.epochs == pytest.approx(9)
    assert task.type_epochs == pytest.approx({"zs_opt": 45, "fs_opt": 5})


@pytest.mark.parametrize("entry", ["@boolq", "bool_q", "bool_*"])
def test_namesakes_of_two_mixtures_are_both_held_out(entry):
    tasks = [size("muffin.bool_q"), size("t0_sf.bool_q"), size("mine")]
    assert [s.held_out for s in apply_mixture(one((entry,)), tasks)] == [True, True, False]


def test_held_out_tasks_are_known_by_any_of_their_names():
    tasks = [size("cot_aqua"), size("cot_input_inversion_aqua"), size("stream_creak"), size("mine")]
    for held_out in (["@aqua", "cot_creak"], ["stream_aqua", "stream_aqua_ii", "stream_creak"]):
        found = {s.task.name: s for s in apply_mixture(one(tuple(held_out)), tasks)}
        assert [share.held_out for share in found.values()] == [True, True, True, False]
        assert found["mine"].share == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (one(("cot_gsm9k",)), "held_out: 'cot_gsm9k' matches no task.*did you mean 'cot_gsm8k'"),
        (one(("@gms8k",)), "mixture 'test': held_out: no evaluation set 'gms8k'; did you mean"),
        (one(tasks=("*_zzz_*",)), r"sub_mixtures\.only\.tasks: '\*_zzz_\*' matches no task"),
        (one(without=("zzz",)), r"sub_mixtures\.only\.without: 'zzz' matches no task"),
        (one(factors={"zzz*": 2.0}), r"sub_mixtures\.only\.factors: 'zzz\*' matches no task"),
        (one(mixtures=("cott",)), r"only\.mixtures: no mixture 'cott'; did you mean 'cot'"),
        (one(("mine",)), "none of the 1 tasks gets a share"),
    ],
)
def test_names_that_mean_nothing_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        apply_mixture(spec, [size("mine")])


def test_own_tasks_and_registered_ones_may_be_named_whether_at_hand_or_not():
    spec = one(("mine_2", "cot_gsm8k", "wiki_*"), mixtures=("cot", "own", "t0_sf"))
    found = apply_mixture(spec, [size("mine_1", mixture="own"), size("mine_2", mixture="own")])
    assert [share.share for share in found] == [1, 0]


def test_a_data_directory_gives_its_own_sizes(mini):
    sizes = directory_sizes(mini)
    assert len(sizes) == 18
    assert {task.count for task in sizes} == {40}
    assert all(sum(task.types.values()) == 40 for task in sizes)
    found = explain_mixture(load_mixture("flan_palm_b"), sizes, samples=18_000)
    totals = {sub.name: sub.samples for sub in found.sub_mixtures}
    assert totals == pytest.approx({"muffin": 9360, "t0_sf": 2700, "cot": 540, "niv2": 5400})


def test_the_command_prints_sums_or_tasks_as_text_json_or_csv(mini, capsys):
    def run(*arguments):
        assert cli.main(["mix", *map(str, arguments)]) == 0
        return capsys.readouterr().out

    assert [line.split()[0] for line in run().splitlines()][:3] == [
        "cot",
        "flan2022",
        "flan2022_clean",
    ]
    sums = run("flan_palm_a")
    assert "46.046%" in sums
    assert "cot_gsm8k" not in sums
    assert "left out, for their sizes are not known (7): trivia_qa_wiki_missing" in sums
    assert "cot_gsm8k" in run("--explain", "flan_palm_a")
    text = run("--explain", "flan2022", mini, "--samples", 500)
    assert "expected among 500 samples" in text
    assert "weekday" in text
    assert "no task for dialog; the others divide the weight" in text
    record = json.loads(run("--explain", "cot", "--json"))
    rows = list(csv.DictReader(run("--explain", "cot", "--csv").splitlines()))
    assert len(rows) == len(record["tasks"])
    assert record["mixture"]["name"] == "cot"
    for row, task in zip(rows, record["tasks"], strict=True):
        assert row["task"] == task["task"]
        assert float(row["share"]) == task["share"]
    assert sum(task["share"] for task in record["tasks"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mix", "flan_2022"], "no mixture 'flan_2022'; did you mean 'flan2022'"),
        (["mix", "cot", "nowhere"], "nowhere/manifest.json: no such file"),
        (["mix", "cot", "--samples", "0"], "samples is 0; expected 1 or more"),
        (["tasks", "--overlaps", "mmul"], "no evaluation set 'mmul'; did you mean 'mmlu'"),
        (["tasks", "--mini", "--count"], "for registered tasks only"),
        (["tasks", "nowhere", "--type", "x"], "for registered tasks only"),
    ],
)
def test_bad_arguments_end_in_one_line(arguments, message, capsys):
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert error[0].startswith("flan-moe-data: error: ")
    assert message in error[0]
