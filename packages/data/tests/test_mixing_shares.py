"""Shares of tasks, against worked examples and as properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flan_moe.data.mixing.shares import TaskSize, task_shares
from flan_moe.data.mixing.spec import MixtureSpec, SubMixture


def spec(held_out=(), **sub_mixtures):
    return MixtureSpec(name="test", sub_mixtures=sub_mixtures, held_out=held_out)


def size(name, count, mixture="a", **types):
    return TaskSize(name=name, mixture=mixture, count=count, types=types)


def shares_of(mixture, tasks, **keywords):
    return {share.task.name: share for share in task_shares(mixture, tasks, **keywords)}


def test_capped_counts_are_shared_within_a_weighted_sub_mixture():
    # a: rates 100, 300 (capped) -> 0.25 and 0.75 of 0.4 / 0.5; b: alone with 0.1 / 0.5.
    mixture = spec(
        a=SubMixture(weight=0.4, mixtures=("a",), cap=300),
        b=SubMixture(weight=0.1, mixtures=("b",)),
    )
    found = shares_of(mixture, [size("x", 100), size("y", 9000), size("z", 5, "b")])
    assert {name: share.share for name, share in found.items()} == pytest.approx(
        {"x": 0.2, "y": 0.6, "z": 0.2}
    )
    assert [share.rate for share in found.values()] == [100, 300, 5]


def test_temperature_and_factors_change_the_rates():
    # Square roots of 100 and 10,000 are 10 and 100; inversions count 0.3 of that.
    sub = SubMixture(weight=1, mixtures=("a",), temperature=2, factors={"*_inversion_*": 0.3})
    found = shares_of(spec(a=sub), [size("x", 100), size("cot_inversion_y", 10_000)])
    assert found["x"].rate == pytest.approx(10)
    assert found["cot_inversion_y"].rate == pytest.approx(30)


def test_a_sub_mixture_without_tasks_gives_its_weight_to_the_others():
    mixture = spec(a=SubMixture(weight=1, mixtures=("a",)), b=SubMixture(weight=3, mixtures=("b",)))
    assert shares_of(mixture, [size("x", 1)])["x"].share == 1


def test_held_out_tasks_and_tasks_of_no_sub_mixture_get_nothing():
    mixture = spec(("task1_*", "@mmlu"), a=SubMixture(weight=1, mixtures=("a",)))
    tasks = [size("task1_x", 5), size("task2_x", 5), size("task3_x", 5), size("z", 5, "b")]
    found = shares_of(mixture, tasks, held_out=["task3_x"])
    assert {name: share.share for name, share in found.items()} == {
        "task1_x": 0,
        "task2_x": 1,
        "task3_x": 0,
        "z": 0,
    }
    assert [share.held_out for share in found.values()] == [True, False, True, False]
    assert found["z"].sub_mixture is None


def test_settings_share_as_asked_and_missing_ones_go_to_the_rest():
    sub = SubMixture(
        weight=1,
        mixtures=("a",),
        template_shares={"zs_opt": 0.25, "fs_opt": 0.25, "zs_noopt": 0.5},
    )
    tasks = [size("x", 40, zs_opt=10, fs_opt=30), size("y", 40, fs_noopt=40), size("z", 40)]
    found = shares_of(spec(a=sub), tasks)
    assert found["x"].types == pytest.approx({"zs_opt": 0.25, "fs_opt": 0.25})
    assert found["y"].share == 0  # has no setting that is wanted
    assert found["z"].types == {}  # unknown, so left alone


def test_a_task_of_two_sub_mixtures_is_refused():
    mixture = spec(
        a=SubMixture(weight=1, mixtures=("a",)),
        b=SubMixture(weight=1, mixtures=("a",), tasks=("x",)),
    )
    with pytest.raises(ValueError, match="'x' belongs to 'a' and 'b'"):
        task_shares(mixture, [size("x", 1)])


def test_a_mixture_that_selects_nothing_is_refused():
    with pytest.raises(ValueError, match="'test': none of the 1 tasks gets a share"):
        task_shares(spec(a=SubMixture(weight=1, mixtures=("b",))), [size("x", 1)])


@given(
    st.lists(st.tuples(st.integers(1, 10**7), st.sampled_from("abc")), min_size=1, max_size=30),
    st.floats(0.5, 100),
    st.integers(1, 10**6),
)
def test_shares_sum_to_one_and_follow_the_weights(tasks, temperature, cap):
    weights = {"a": 1.0, "b": 2.0, "c": 4.0}
    mixture = spec(
        **{
            name: SubMixture(weight=weight, mixtures=(name,), temperature=temperature, cap=cap)
            for name, weight in weights.items()
        }
    )
    sizes = [size(f"t{i}", count, home, zs_opt=count) for i, (count, home) in enumerate(tasks)]
    found = task_shares(mixture, sizes)
    assert sum(share.share for share in found) == pytest.approx(1)
    present = {share.sub_mixture for share in found}
    total = sum(weights[name] for name in present)
    for name in present:
        mine = sum(share.share for share in found if share.sub_mixture == name)
        assert mine == pytest.approx(weights[name] / total)
    for share in found:
        assert sum(share.types.values()) == pytest.approx(share.share)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": -1}, "weight is -1"),
        ({"weight": float("nan")}, "weight is nan"),
        ({"temperature": 0}, "temperature is 0"),
        ({"cap": 0}, "cap is 0"),
        ({"mixtures": ()}, "mixtures is empty"),
        ({"factors": {"x": 0}}, "factors.x is 0"),
        ({"template_shares": {"zs": 1}}, "template_shares.zs: no such setting"),
        ({"template_shares": {"zs_opt": 0}}, "all are 0"),
        ({"template_shares": {"zs_opt": 1e308, "fs_opt": 1e308}}, "their sum overflows"),
        ({"cap": 1.5}, r"cap is 1\.5"),
        ({"cap": "3"}, "cap is '3'"),
        ({"mixtures": "muffin"}, "mixtures is 'muffin'; expected a tuple"),
        ({"tasks": "*"}, r"tasks is '\*'"),
        ({"without": (3,)}, r"without is \(3,\)"),
    ],
)
def test_a_sub_mixture_refuses_values_that_mean_nothing(change, message):
    with pytest.raises(ValueError, match=message):
        SubMixture(**{"weight": 1, "mixtures": ("a",)} | change)


@pytest.mark.parametrize(
    "change", [{"temperature": 1e-3}, {"temperature": 1e-310}, {"factors": {"*": 1e308}}]
)
def test_rates_that_overflow_are_refused(change):
    mixture = spec(one=SubMixture(weight=1, mixtures=("a",), **change))
    with pytest.raises(ValueError, match=r"sub_mixtures\.one: rates overflow"):
        task_shares(mixture, [size("x", 60, "a"), size("y", 40, "a")])
