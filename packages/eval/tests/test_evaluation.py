"""Running a suite: known answers give known scores, and nothing is asked twice."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from flan_moe.eval import (
    Decoding,
    Results,
    SampleLogError,
    Suite,
    evaluate,
    load_run,
    load_suite,
    write_report,
)
from flan_moe.eval.console import results_text
from flan_moe.eval.statistics import wilson_interval


def answers_of(suite):
    return {item.input: item.target for task in suite.tasks for item in task.items}


def question_of(prompt):
    """The body of the last question of a prompt of the toy suite."""
    return prompt.split("\n\n")[-1].removesuffix("\nLet's think step by step.")


def oracle(suite, fake_model, **changes):
    targets = answers_of(suite)
    settings = {
        "answer": lambda prompt: (
            targets[question_of(prompt)]
            if "\n" not in prompt.split("\n\n")[-1]
            else f"We think. So the answer is {targets[question_of(prompt)]}."
        ),
        "score": lambda prompt, option: 0.0 if option == targets[question_of(prompt)] else -1.0,
    }
    return fake_model(**(settings | changes))


def cells(results):
    return {(t.task, t.shots, t.mode): t for t in results.tasks}


def test_a_model_that_knows_everything(suite_dir, fake_model):
    suite = load_suite(suite_dir)
    results = evaluate(oracle(suite, fake_model), suite, shots=(0, 2))
    assert [(t.task, t.shots, t.mode) for t in results.tasks] == [
        (task, shots, mode)
        for shots in (0, 2)
        for mode in ("direct", "cot")
        for task in ("sums", "more_sums", "colours")
        if (task, mode) != ("colours", "cot")
    ]
    for score in results.tasks:
        assert (score.score, score.normalized, score.parse_failures) == (1.0, 100.0, 0)
        assert score.interval == wilson_interval(1.0, score.n)
    assert {(g.group, g.shots, g.mode): g.tasks for g in results.groups} == {
        ("held_out", 0, "direct"): ("sums", "more_sums"),
        ("held_out", 0, "cot"): ("sums", "more_sums"),
        ("held_out", 2, "direct"): ("sums", "more_sums"),
        ("held_out", 2, "cot"): ("sums", "more_sums"),
        ("held_in", 0, "direct"): ("colours",),
        ("held_in", 2, "direct"): ("colours",),
    }


def test_known_mistakes_give_known_scores(suite_dir, fake_model):
    suite = load_suite(suite_dir)
    targets = answers_of(suite)

    def answer(prompt):
        # Right on numbers below 3, unreadable on the 3s, wrong above.
        target = int(targets[question_of(prompt)])
        return str(target) if target < 3 else "dunno" if target == 3 else "77"

    def score(prompt, option):
        # Always the long option by sum, "red" per token.
        return {"red": -1.9, "big car": -1.0}.get(option, -9.0)

    results = evaluate(fake_model(answer, score), suite, modes=["direct"])
    found = cells(results)
    sums = found["sums", 0, "direct"]  # targets 0..9, 0, 1
    assert (sums.n, sums.score, sums.parse_failures) == (12, 5 / 12, 1)
    assert sums.secondary == {"strict_exact_match": 5 / 12}
    assert sums.standard_error == pytest.approx((5 / 12 * 7 / 12 / 11) ** 0.5)
    colours = found["colours", 0, "direct"]  # red blue green car, twice, then red blue
    assert colours.score == 0.2
    assert colours.secondary == {"per_token_accuracy": 0.2}
    assert colours.normalized == pytest.approx(100 * (0.2 - 0.25) / 0.75)
    assert (colours.method, sums.method) == ("loglikelihood", "generate")
    held_out, held_in = results.groups
    assert (held_out.chance, held_in.chance) == (0.0, 0.25)
    # A group of one task has that task's interval, normalised with its chance score.
    assert held_in.normalized == pytest.approx(colours.normalized)
    for end in ("low", "high"):
        raw = getattr(held_in.over_items, end)
        assert raw == pytest.approx(getattr(colours.interval, end))
        expected = 100 * (raw - 0.25) / 0.75
        assert getattr(held_in.normalized_over_items, end) == pytest.approx(expected)
    assert held_out.score == pytest.approx(5 / 12)
    assert held_out.parse_failure_rate == pytest.approx(1 / 12)


@pytest.mark.parametrize(("answer", "share"), [("one", 1.0), ("1", 1.0), ("two", 0.0)])
def test_any_of_several_right_answers_counts(suite_dir, fake_model, tmp_path, answer, share):
    file = suite_dir / "sums.jsonl"
    rows = [json.loads(line) | {"targets": ["1", "one"]} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = load_suite(suite_dir).select(("sums",))
    model = fake_model(answer=lambda prompt: answer)
    results = evaluate(model, suite, modes=["direct"], out_dir=tmp_path / "run")
    (score,) = results.tasks
    assert (score.score, score.secondary["strict_exact_match"]) == (share, share)
    (samples,) = load_run(tmp_path / "run").samples.values()
    assert {sample.targets for sample in samples} == {("1", "one")}
    page = write_report(tmp_path / "report", runs=[load_run(tmp_path / "run")]).read_text()
    assert "target: <strong>1 or one</strong>" in page


def test_any_of_several_right_options_counts(suite_dir, fake_model):
    file = suite_dir / "colours.jsonl"
    rows = [
        json.loads(line) | {"targets": ["red", "green"]} for line in file.read_text().splitlines()
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = load_suite(suite_dir).select(("colours",))
    for option, share in (("green", 1.0), ("blue", 0.0)):
        model = fake_model(score=lambda prompt, o, option=option: float(o == option))
        assert evaluate(model, suite).tasks[0].score == share


def test_siblings_of_trained_tasks_are_a_group_of_their_own(suite_dir, fake_model, tmp_path):
    file = suite_dir / "suite.json"
    record = json.loads(file.read_text())
    record["tasks"][1]["group"] = "held_out_sibling"
    file.write_text(json.dumps(record))
    results = evaluate(
        fake_model(), load_suite(suite_dir), modes=["direct"], out_dir=tmp_path / "run"
    )
    groups = {group.group: group.tasks for group in results.groups}
    assert list(groups.items()) == [
        ("held_out", ("sums",)),
        ("held_out_sibling", ("more_sums",)),
        ("held_in", ("colours",)),
    ]
    assert "held-out sibling" in results_text(results)
    page = write_report(tmp_path / "report", runs=[load_run(tmp_path / "run")]).read_text()
    assert '<span class="tag held_out_sibling">held-out sibling</span>' in page


def test_the_per_token_choice_is_reported_apart(suite_dir, fake_model):
    suite = load_suite(suite_dir).select(("colours",))
    model = fake_model(
        score=lambda prompt, option: {"red": -1.0, "big car": -1.5}.get(option, -9.0)
    )
    (score,) = evaluate(model, suite).tasks
    assert score.score == 0.3  # "red" is right at items 0, 4, 8
    assert score.secondary == {"per_token_accuracy": 0.2}  # "big car" at items 3, 7


def test_a_prompt_is_asked_once(suite_dir, fake_model):
    lines = (suite_dir / "sums.jsonl").read_text().splitlines()
    repeated = [json.loads(lines[0]) | {"id": f"again-{i}"} for i in range(5)]
    with (suite_dir / "sums.jsonl").open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in repeated))
    suite = load_suite(suite_dir).select(("sums",))
    model = oracle(suite, fake_model)
    results = evaluate(model, suite, modes=["direct"])
    assert results.tasks[0].n == 17
    assert len(model.asked) == len(set(model.asked)) == 12


def test_limit_takes_the_first_items(suite_dir, fake_model):
    suite = load_suite(suite_dir)
    model = oracle(suite, fake_model)
    results = evaluate(model, suite, modes=["direct"], limit=4)
    assert [score.n for score in results.tasks] == [4, 4, 4]
    assert set(model.asked) == {item.input for task in suite.tasks for item in task.items[:4]}


class TokenCounting:
    """Gives a fake model tokens: its words, and at most ``limit`` of them in a prompt."""

    def __init__(self, model, limit):
        self.model, self.limit = model, limit
        self.fingerprint = "counting"
        self.generate, self.loglikelihood = model.generate, model.loglikelihood

    def count_tokens(self, text):
        return len(text.split())

    def excess_tokens(self, request):
        return len(request.prompt.split()) - self.limit


def test_exemplars_are_dropped_and_counted(suite_dir, fake_model):
    suite = load_suite(suite_dir).select(("sums",))
    words = [len(item.input.split()) for item in suite.tasks[0].items]
    exemplars = [len(item.input.split()) + 1 for item in suite.tasks[0].exemplars]
    limit = max(words) + exemplars[0]
    kept = [2 if n + exemplars[0] + exemplars[1] <= limit else 1 for n in words]
    model = TokenCounting(oracle(suite, fake_model), limit)
    (score,) = evaluate(model, suite, shots=[2], modes=["direct"]).tasks
    assert score.exemplars_dropped == 24 - sum(kept) > 0
    assert score.prompts_truncated == 0
    assert score.mean_output_tokens == 1.0
    (score,) = evaluate(TokenCounting(oracle(suite, fake_model), 9), suite, modes=["direct"]).tasks
    assert score.prompts_truncated == sum(n > 9 for n in words) > 0


def files_of(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class KilledError(RuntimeError):
    pass


@pytest.mark.parametrize("survives", [0, 1, 3, 7])
def test_an_interrupted_run_goes_on_where_it_stopped(suite_dir, fake_model, tmp_path, survives):
    suite = load_suite(suite_dir)
    settings = {"shots": (0, 2), "chunk_size": 5}
    whole = oracle(suite, fake_model)
    expected = evaluate(whole, suite, out_dir=tmp_path / "whole", **settings)

    first = oracle(suite, fake_model)
    ask, calls = first.generate, []

    def dies(requests):
        calls.append(len(requests))
        if len(calls) > survives:
            raise KilledError
        return ask(requests)

    first.generate = dies
    with pytest.raises(KilledError):
        evaluate(first, suite, out_dir=tmp_path / "parts", **settings)
    assert not (tmp_path / "parts" / "results.json").exists()
    second = oracle(suite, fake_model)
    resumed = evaluate(second, suite, out_dir=tmp_path / "parts", **settings)
    assert resumed == expected
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")
    assert sorted(first.asked + second.asked) == sorted(whole.asked)


def test_a_finished_run_asks_nothing_again(suite_dir, fake_model, tmp_path):
    suite = load_suite(suite_dir)
    first = evaluate(oracle(suite, fake_model), suite, out_dir=tmp_path / "out")
    again = oracle(suite, fake_model)
    assert evaluate(again, suite, out_dir=tmp_path / "out") == first
    assert again.asked == []


KILLED_IN_THE_MIDDLE = """
    import os, signal, sys
    from flan_moe.eval import evaluate, load_suite

    class Slow:
        fingerprint = "slow"
        answered = 0
        def generate(self, requests):
            Slow.answered += len(requests)
            if Slow.answered > int(sys.argv[3]):
                os.kill(os.getpid(), signal.SIGKILL)
            return [str(len(request.prompt) % 10) for request in requests]
        def loglikelihood(self, requests):
            raise NotImplementedError

    suite = load_suite(sys.argv[1]).select(("sums", "more_sums"))
    evaluate(Slow(), suite, out_dir=sys.argv[2], chunk_size=5)
    print(Slow.answered)
"""


def test_a_killed_process_leaves_what_it_answered(suite_dir, tmp_path):
    def run(out, lives):
        command = [sys.executable, "-c", textwrap.dedent(KILLED_IN_THE_MIDDLE)]
        return subprocess.run(
            [*command, suite_dir, tmp_path / out, str(lives)],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        )

    assert run("whole", 10**6).stdout == "48\n"
    assert run("parts", 20).returncode == -signal.SIGKILL
    # 5 + 5 + 2 of the first cell and 5 of the second were answered and kept.
    assert run("parts", 10**6).stdout == "31\n"
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")


def log_of(folder):
    return folder / "samples" / "sums.0-shot.direct.jsonl"


@pytest.fixture
def finished(suite_dir, fake_model, tmp_path):
    """A suite of one task, a folder with its finished run, and a way to run again."""
    suite = load_suite(suite_dir).select(("sums",))
    out = tmp_path / "out"

    def again(**changes):
        model = changes.pop("model", None) or oracle(suite, fake_model)
        results = evaluate(model, suite, **({"modes": ["direct"], "out_dir": out} | changes))
        return model, results

    again()
    return out, again


def test_a_line_torn_by_a_kill_is_asked_again(finished):
    out, again = finished
    complete = log_of(out).read_bytes()
    log_of(out).write_bytes(complete[:-20])
    model, _ = again()
    assert len(model.asked) == 1
    assert log_of(out).read_bytes() == complete


def test_a_log_torn_in_its_header_is_begun_again(finished):
    out, again = finished
    complete = log_of(out).read_bytes()
    log_of(out).write_bytes(complete[:30])
    model, _ = again()
    assert len(model.asked) == 12
    assert log_of(out).read_bytes() == complete


@pytest.mark.parametrize(
    ("line", "text", "complaint"),
    [
        (4, "{broken", "sums.0-shot.direct.jsonl:4: not JSON"),
        (4, "{}", "sums.0-shot.direct.jsonl:4: key 'secondary' is missing"),
        (1, "{}", "sums.0-shot.direct.jsonl:1: key 'format' is missing"),
        (1, '{"format": "flan-moe-eval-samples", "version": 9}', "version: 9; expected 2"),
    ],
)
def test_a_corrupt_log_is_named_with_its_line(finished, line, text, complaint):
    out, again = finished
    lines = log_of(out).read_text().splitlines()
    lines[line - 1] = text
    log_of(out).write_text("\n".join(lines) + "\n")
    before = log_of(out).read_bytes()
    with pytest.raises(SampleLogError, match=complaint):
        again()
    assert log_of(out).read_bytes() == before


def test_a_sample_without_an_answer_is_corrupt(finished):
    out, again = finished
    lines = log_of(out).read_text().splitlines()
    lines[3] = json.dumps(json.loads(lines[3]) | {"output": None})
    log_of(out).write_text("\n".join(lines) + "\n")
    with pytest.raises(SampleLogError, match=":4: neither an output nor one log-probability"):
        again()


def test_the_log_of_another_model_is_refused_before_anything_is_asked(finished, fake_model):
    out, again = finished
    before = files_of(out)
    other = fake_model(fingerprint="fake-2")
    with pytest.raises(SampleLogError, match="model: 'fake-1' there, 'fake-2' here"):
        again(model=other)
    assert other.asked == []
    assert files_of(out) == before
    _, results = again(model=other, overwrite=True)
    assert len(other.asked) == 12
    assert results.fingerprint == "fake-2"


def test_other_decoding_is_another_run(finished):
    _, again = finished
    with pytest.raises(SampleLogError, match="max_new_tokens: 64 there, 5 here"):
        again(decoding=Decoding(direct_tokens=5))


def test_changed_questions_are_another_run(finished, suite_dir, fake_model):
    out, _ = finished
    text = (suite_dir / "sums.jsonl").read_text()
    (suite_dir / "sums.jsonl").write_text(text.replace("what is 7", "what is 70"))
    suite = load_suite(suite_dir).select(("sums",))
    with pytest.raises(SampleLogError, match="content: "):
        evaluate(oracle(suite, fake_model), suite, modes=["direct"], out_dir=out)


def test_a_higher_limit_only_asks_the_rest(suite_dir, fake_model, tmp_path):
    suite = load_suite(suite_dir).select(("sums",))
    settings = {"modes": ["direct"], "out_dir": tmp_path / "out"}
    evaluate(oracle(suite, fake_model), suite, limit=5, **settings)
    more = oracle(suite, fake_model)
    assert evaluate(more, suite, limit=9, **settings).tasks[0].n == 9
    assert len(more.asked) == 4
    # And back: the surplus stays in the log, behind the samples that count.
    none = oracle(suite, fake_model)
    assert evaluate(none, suite, limit=5, **settings).tasks[0].n == 5
    assert none.asked == []
    run = load_run(tmp_path / "out")
    assert [s.id for s in next(iter(run.samples.values()))] == [f"sums-{i}" for i in range(5)]
    assert len(log_of(tmp_path / "out").read_text().splitlines()) == 10


def test_a_model_without_fingerprint_needs_one_for_its_log(suite_dir, fake_model, tmp_path):
    suite = load_suite(suite_dir).select(("sums",))
    model = oracle(suite, fake_model)
    nameless = type("Nameless", (), {"generate": model.generate, "loglikelihood": None})()
    with pytest.raises(ValueError, match="fingerprint"):
        evaluate(nameless, suite, out_dir=tmp_path / "out")
    results = evaluate(nameless, suite, out_dir=tmp_path / "out", fingerprint="given")
    assert results.fingerprint == "given"
    assert Results.load(tmp_path / "out") == results


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"shots": [4]}, r"shots: \[4\]; task 'sums' has 3 exemplars"),
        ({"shots": [-1]}, r"shots: \[-1\]"),
        ({"shots": []}, r"shots: \[\]"),
        ({"shots": [1, 1]}, r"shots: \[1, 1\]"),
        ({"modes": ["direct", "chain"]}, "modes: 'chain'"),
        ({"limit": 0}, "limit: 0"),
        ({"chunk_size": 0}, "chunk_size: 0"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_asked(
    suite_dir, fake_model, settings, complaint
):
    suite = load_suite(suite_dir)
    model = oracle(suite, fake_model)
    with pytest.raises(ValueError, match=complaint):
        evaluate(model, suite, **settings)
    assert model.asked == []


def test_a_suite_without_the_mode_is_refused(suite_dir, fake_model):
    suite = load_suite(suite_dir).select(("colours",))
    with pytest.raises(ValueError, match=r"modes: \['cot'\]; no task of suite 'toy'"):
        evaluate(fake_model(), suite, modes=["cot"])


def test_exemplars_without_rationale_are_refused_before_anything_is_asked(suite_dir, fake_model):
    suite = load_suite(suite_dir)
    task = suite.tasks[0]
    bare = replace(task, exemplars=tuple(replace(e, rationale=None) for e in task.exemplars))
    model = oracle(suite, fake_model)
    with pytest.raises(ValueError, match="no rationale"):
        evaluate(model, Suite(name="x", source="x", tasks=(*suite.tasks[1:], bare)), shots=[1])
    assert model.asked == []


def test_a_model_that_loses_answers_is_named(suite_dir, fake_model):
    model = fake_model()
    model.generate = lambda requests: ["only one"]
    with pytest.raises(ValueError, match="FakeModel gave 1 answers to 12 requests"):
        evaluate(model, load_suite(suite_dir))


def test_progress_names_every_cell(suite_dir, fake_model, capsys):
    suite = load_suite(suite_dir)
    evaluate(oracle(suite, fake_model), suite, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("[1/5] sums 0-shot direct: 100.0 % of 12 (")
    evaluate(oracle(suite, fake_model), suite)
    assert capsys.readouterr().err == ""


def test_nothing_temporary_is_left(finished):
    out, _ = finished
    assert sorted(files_of(out)) == [
        Path("results.json"),
        Path("samples/sums.0-shot.direct.jsonl"),
    ]
