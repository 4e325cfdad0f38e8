"""Intervals and tests against closed forms, published tables and simulation."""

import math
import random
from statistics import NormalDist, fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flan_moe.eval.statistics import (
    Interval,
    chance_normalized,
    macro_mean,
    paired_difference,
    sign_test,
    standard_error,
    student_t_cdf,
    student_t_quantile,
    wilson_interval,
)

Z = NormalDist().inv_cdf(0.975)


def test_standard_error_of_a_proportion_has_a_closed_form():
    values = [1.0] * 30 + [0.0] * 70
    assert standard_error(values) == pytest.approx(math.sqrt(0.3 * 0.7 / 99))
    assert standard_error([0.4]) == 0.0


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_equals_the_published_table(successes, n, low, high):
    interval = wilson_interval(successes / n, n)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500), st.data())
def test_wilson_ends_are_where_the_score_test_is_on_the_edge(n, data):
    p = data.draw(st.integers(0, n)) / n
    interval = wilson_interval(p, n)
    assert 0.0 <= interval.low <= p <= interval.high <= 1.0
    for end in (interval.low, interval.high):
        if 0.0 < end < 1.0:
            assert abs(p - end) / math.sqrt(end * (1 - end) / n) == pytest.approx(Z, rel=1e-6)


@pytest.mark.parametrize(
    ("degrees", "quantile"),  # the usual printed table of the 97.5 % points
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (5, 2.57058), (10, 2.22814), (30, 2.04227)],
)
def test_student_t_quantiles_equal_the_table(degrees, quantile):
    assert student_t_quantile(0.975, degrees) == pytest.approx(quantile, rel=1e-5)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 12])
def test_student_t_cdf_is_the_integral_of_the_density(degrees):
    scale = math.gamma((degrees + 1) / 2) / (math.sqrt(degrees * math.pi) * math.gamma(degrees / 2))

    def density(t):
        return scale * (1 + t * t / degrees) ** (-(degrees + 1) / 2)

    steps, end = 4000, 1.7
    width = end / steps
    simpson = density(0) + density(end)
    simpson += sum((4 if k % 2 else 2) * density(k * width) for k in range(1, steps))
    assert student_t_cdf(end, degrees) == pytest.approx(0.5 + simpson * width / 3, abs=1e-9)
    assert student_t_cdf(-end, degrees) == pytest.approx(1 - student_t_cdf(end, degrees))


def test_macro_mean_combines_independent_errors():
    means = [0.2, 0.5, 0.9]
    errors = [0.04, 0.03, 0.02]
    intervals = [Interval(m - Z * e, m + Z * e) for m, e in zip(means, errors, strict=True)]
    found = macro_mean(means, intervals)
    half = Z * math.sqrt(sum(e * e for e in errors)) / 3
    assert found.mean == pytest.approx(fmean(means))
    assert found.over_items.low == pytest.approx(found.mean - half)
    assert found.over_items.high == pytest.approx(found.mean + half)
    wide = 4.302653 * stdev(means) / math.sqrt(3)
    assert found.over_tasks.high - found.mean == pytest.approx(wide, rel=1e-6)


def test_one_task_says_nothing_about_other_tasks():
    interval = wilson_interval(0.5, 10)
    found = macro_mean([0.5], [interval])
    assert found.over_tasks is None
    assert (found.over_items.low, found.over_items.high) == pytest.approx(
        (interval.low, interval.high)
    )


def test_tasks_that_are_all_right_still_have_an_interval():
    found = macro_mean([1.0, 1.0], [wilson_interval(1.0, 20)] * 2)
    assert found.over_items.high == 1.0
    assert found.over_items.low < 0.95


def covered(truth, interval):
    return interval.low <= truth <= interval.high


def test_macro_intervals_cover_what_they_claim():
    rng = random.Random(7)
    fixed = [0.05, 0.3, 0.5, 0.8, 0.95, 0.6]
    over_items = over_tasks = 0
    rounds = 600
    for _ in range(rounds):
        for targets, is_items in (
            (fixed, True),
            ([rng.uniform(0.2, 0.8) for _ in range(6)], False),
        ):
            scores = [sum(rng.random() < p for _ in range(40)) / 40 for p in targets]
            found = macro_mean(scores, [wilson_interval(s, 40) for s in scores])
            if is_items:
                over_items += covered(fmean(fixed), found.over_items)
            else:
                over_tasks += covered(0.5, found.over_tasks)
    # Two-sided 99.9 % bounds of a binomial with 600 rounds at 95 % are about 0.92 and 0.98.
    assert 0.92 < over_items / rounds < 0.985
    assert 0.92 < over_tasks / rounds < 0.985


@pytest.mark.parametrize(
    ("score", "chance", "normalized"),
    [(0.45, 0.5, -10.0), (1.0, 0.25, 100.0), (0.25, 0.25, 0.0), (0.0, 0.5, -100.0), (0.3, 0.0, 30)],
)
def test_chance_normalised_scores_are_not_clipped(score, chance, normalized):
    # The first row is footnote 5 of Chung et al. 2022: 45 % on a coin flip is -10 %.
    assert chance_normalized(score, chance) == pytest.approx(normalized)


def test_certain_success_by_chance_is_refused():
    with pytest.raises(ValueError, match="chance"):
        chance_normalized(1.0, 1.0)


def test_paired_difference_counts_only_what_changed():
    a = [True] * 50 + [False] * 50
    b = [True] * 45 + [False] * 5 + [True] * 15 + [False] * 35
    found = paired_difference(a, b)
    assert (found.wins, found.losses, found.n) == (15, 5, 100)
    assert found.mean == pytest.approx(0.10)
    win, loss = 16 / 102, 6 / 102
    half = Z * math.sqrt((win + loss - (win - loss) ** 2) / 102)
    assert found.interval.low == pytest.approx(win - loss - half)
    assert found.interval.high == pytest.approx(win - loss + half)
    # Binomial(20, 1/2): 2 P(X <= 5) = 2 * 21700 / 2^20.
    assert found.p_value == pytest.approx(2 * 21700 / 2**20)


def test_paired_interval_is_narrower_than_unpaired_for_runs_that_agree():
    a = [i % 2 == 0 for i in range(200)]
    b = [*a[:-4], True, True, True, True]
    paired = paired_difference(a, b).interval
    p, q = fmean(a), fmean(b)
    unpaired = Z * math.sqrt(p * (1 - p) / 200 + q * (1 - q) / 200)
    assert paired.high - paired.low < unpaired


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_paired_difference_is_antisymmetric(pairs):
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    forward, backward = paired_difference(a, b), paired_difference(b, a)
    assert forward.mean == -backward.mean
    assert forward.interval.low == pytest.approx(-backward.interval.high)
    assert forward.p_value == backward.p_value
    assert forward.interval.low <= forward.mean <= forward.interval.high
    assert forward.interval.low < forward.interval.high


@pytest.mark.parametrize(
    ("wins", "losses", "p"), [(0, 0, 1.0), (9, 1, 22 / 1024), (5, 5, 1.0), (0, 6, 2 / 64)]
)
def test_sign_test_closed_forms(wins, losses, p):
    assert sign_test(wins, losses) == pytest.approx(p)
    assert 0 < sign_test(3000, 2000) < 1e-40


def test_tasks_that_happen_to_agree_do_not_look_certain():
    """Student's interval of equal means has no width; other tasks still have other questions."""
    score = macro_mean([0.0, 0.0], [wilson_interval(0.0, 25), wilson_interval(0.0, 25)])
    assert score.over_tasks == score.over_items
    assert score.over_tasks.high > 0.05
    spread = macro_mean([0.2, 0.8], [wilson_interval(0.2, 25), wilson_interval(0.8, 25)])
    assert spread.over_tasks.high > spread.over_items.high
