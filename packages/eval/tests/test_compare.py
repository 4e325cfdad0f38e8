"""Runs are compared item by item."""

import json
from dataclasses import replace

import pytest

from flan_moe.eval import compare_runs, evaluate, load_run, load_suite
from flan_moe.eval.console import comparison_text


@pytest.fixture
def run_of(suite_dir, fake_model, tmp_path):
    suite = load_suite(suite_dir)
    targets = {item.input: item.target for task in suite.tasks for item in task.items}

    def target(prompt):
        return targets[prompt.split("\n\n")[-1]]

    def run(label, knows, **settings):
        """Evaluate a model that knows the answers for which ``knows(target)`` holds."""
        model = fake_model(
            answer=lambda prompt: target(prompt) if knows(target(prompt)) else "77",
            score=lambda prompt, option: float((option == target(prompt)) == knows(target(prompt))),
            fingerprint=label,
        )
        settings = {"modes": ["direct"]} | settings
        evaluate(model, suite, out_dir=tmp_path / label, **settings)
        return load_run(tmp_path / label)

    return run


def test_wins_and_losses_are_counted_on_the_same_items(run_of):
    a = run_of("a", lambda target: target in ("0", "1", "2"))
    b = run_of("b", lambda target: target in ("2", "3", "4", "5"))
    found = {task.task: task for task in compare_runs(a, b).tasks}
    sums = found["sums"]  # targets 0 to 9, 0, 1
    assert (sums.score_a, sums.score_b) == (5 / 12, 4 / 12)
    difference = sums.difference
    assert (difference.wins, difference.losses, difference.n) == (3, 4, 12)
    assert difference.mean == pytest.approx(-1 / 12)
    # Neither knows a colour, so nothing changes.
    assert found["colours"].difference.mean == 0.0
    assert found["colours"].difference.p_value == 1.0


def test_group_differences_are_macro_means(run_of):
    a, b = run_of("a", lambda target: False), run_of("b", lambda target: target == "3")
    groups = {group.group: group for group in compare_runs(a, b).groups}
    assert groups["held_out"].tasks == ("sums", "more_sums")
    assert groups["held_out"].difference == pytest.approx(1 / 12)
    assert groups["held_out"].over_tasks is not None
    assert groups["held_in"].over_tasks is None


def test_runs_with_other_limits_are_compared_on_what_they_share(run_of):
    a, b = run_of("a", lambda t: True, limit=4), run_of("b", lambda t: t != "1")
    sums = compare_runs(a, b).tasks[0]
    assert (sums.difference.n, sums.difference.losses) == (4, 1)


def test_settings_of_only_one_run_are_listed(run_of):
    a = run_of("a", lambda t: True)
    b = run_of("b", lambda t: True, shots=[0, 1])
    comparison = compare_runs(a, b)
    assert comparison.only_a == ()
    assert ("sums", 1, "direct") in comparison.only_b
    assert "Only in B: sums 1-shot direct" in comparison_text(comparison)


def test_other_questions_under_the_same_name_are_refused(run_of):
    a, b = run_of("a", lambda t: True), run_of("b", lambda t: True)
    changed = replace(b.results.tasks[0], content_hash="other")
    b = replace(b, results=replace(b.results, tasks=(changed,)))
    with pytest.raises(ValueError, match="task 'sums' is not the same in 'a' and 'b'"):
        compare_runs(a, b)


def test_nothing_in_common_is_refused(run_of):
    a = run_of("a", lambda t: True)
    b = run_of("b", lambda t: True, shots=[1])
    with pytest.raises(ValueError, match="no task, shots and mode in common"):
        compare_runs(a, b)


def test_the_table_and_the_json_hold_the_numbers(run_of):
    comparison = compare_runs(run_of("a", lambda t: False), run_of("b", lambda t: t == "3"))
    text = comparison_text(comparison)
    assert "+8.3" in text
    record = json.loads(comparison.to_json())
    assert record["tasks"][0]["difference"]["wins"] == 1
