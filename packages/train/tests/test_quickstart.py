"""The quickstart: every stage, once; a report made of what it found; raw data as well."""

import json
import re
from types import SimpleNamespace

import pytest

from flan_moe.train.preflight import check_recipe
from flan_moe.train.quickstart import MODELS, Quickstart, Settings
from flan_moe.train.quickstart_data import build_quickstart_data, find_raw
from flan_moe.train.quickstart_notes import verdict
from flan_moe.train.recipe import RecipeError
from flan_moe.train.run_folder import RunFolderError

SETTINGS = Settings(steps=2, examples=6, tasks=4, questions=2, shots=(0,))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("quickstart") / "out"
    lines = []
    page = Quickstart(out, SETTINGS, report=lines.append).run()
    return out, page, lines


def test_every_stage_is_announced_and_leaves_its_result(done):
    out, page, lines = done
    stages = [line.strip() for line in lines if re.match(r"\n\[\d/8\]", line)]
    assert [s.split("] ")[1] for s in stages] == [
        "building data",
        "evaluating the sparse model, untrained",
        "training the sparse model",
        "evaluating the sparse model, tuned",
        "evaluating the dense model, untrained",
        "training the dense model",
        "evaluating the dense model, tuned",
        "writing the report",
    ]
    assert page == out / "index.html"
    for label in MODELS:
        assert (out / "models" / f"{label}-tuned" / "model.safetensors").exists()
        assert (out / "runs" / label / "finished.json").exists()
        for state in ("untrained", "tuned"):
            assert (out / "evaluations" / f"{label}-{state}" / "results.json").exists()


def test_the_report_shows_scores_curves_experts_and_compute(done):
    out, page, _ = done
    text = page.read_text()
    figures = {p.name for p in (out / "figures").iterdir()}
    assert {"group-means.png", "series-1.png", "heatmap-1.png", "points-1.png"} <= figures
    for words in ("held-out", "held-in", "Expert load of the sparse model", "Training loss"):
        assert words in text
    evaluated = [task.name for task in Quickstart(out, SETTINGS).suite().tasks]
    assert 4 < len(evaluated) <= 12, "at most four of each group"
    for task in evaluated:
        assert task in text


def test_the_notes_say_what_the_files_say(done):
    """Numbers in the words are those of the results, not of the person who wrote the words."""
    out, page, _ = done
    text = page.read_text()
    for label in MODELS:
        results = json.loads((out / "evaluations" / f"{label}-tuned" / "results.json").read_text())
        group = next(
            g
            for g in results["groups"]
            if (g["group"], g["shots"], g["mode"]) == ("held_out", 0, "direct")
        )
        assert f"{100 * group['score']:.1f} %" in text
        run = json.loads((out / "runs" / label / "finished.json").read_text())
        assert f"{run['tokens']:,} tokens" in text


def test_the_twins_differ_in_parameters_and_agree_in_compute_and_data(done):
    from flan_moe.train.quickstart_report import mflops_per_token

    out, _, _ = done
    quickstart = Quickstart(out, SETTINGS)
    sparse, dense = (mflops_per_token(quickstart, label) for label in MODELS)
    assert sparse == pytest.approx(dense, rel=0.02)
    plan = check_recipe(quickstart.recipe("sparse"))
    rows = plan.data.row_lengths(plan.loaded.recipe)
    assert sparse == rows.flops_per_token(plan.config).mean / 1e6
    seen = [json.loads((out / "runs" / m / "finished.json").read_text()) for m in MODELS]
    assert seen[0]["tokens"] == seen[1]["tokens"]


def test_a_second_call_repeats_nothing_but_the_report(done):
    out, page, _ = done
    before = {p: p.stat().st_mtime_ns for p in out.glob("evaluations/*/results.json")}
    before |= {p: p.stat().st_mtime_ns for p in out.glob("models/*/model.safetensors")}
    page.unlink()
    lines = []
    Quickstart(out, SETTINGS, report=lines.append).run()
    assert page.exists()
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert sum(line.endswith(": done before") for line in lines) == 7


def test_other_settings_need_another_folder(done):
    with pytest.raises(RunFolderError, match="holds a quickstart with"):
        Quickstart(done[0], Settings(steps=5))


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunFolderError, match="expected an empty folder or a quickstart"):
        Quickstart(tmp_path, Settings())
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("difference", "low", "high", "expected"),
    [
        (0.12, 0.02, 0.21, ("up", "+12.0 points [+2.0, +21.0]")),
        (-0.12, -0.21, -0.02, ("down", "-12.0 points [-21.0, -2.0]")),
        (0.01, -0.05, 0.07, ("open", "+1.0 points [-5.0, +7.0]")),
        (0.0, 0.0, 0.0, ("open", "+0.0 points [+0.0, +0.0]")),
    ],
)
def test_a_difference_counts_only_if_its_interval_excludes_zero(difference, low, high, expected):
    over_items = SimpleNamespace(low=low, high=high)
    change = SimpleNamespace(group="held_in", difference=difference, over_items=over_items)
    assert verdict(change) == expected


@pytest.mark.parametrize("group", ["held_out", "held_out_sibling"])
@pytest.mark.parametrize(
    ("over_tasks", "direction", "words"),
    [
        ((0.01, 0.23), "up", "[+1.0, +23.0] over tasks"),
        ((-0.30, 0.54), "open", "[-30.0, +54.0] over tasks"),
        (None, "open", "[unknown from one task] over tasks"),
    ],
)
def test_held_out_tasks_are_judged_by_the_interval_over_tasks(group, over_tasks, direction, words):
    change = SimpleNamespace(
        group=group,
        difference=0.12,
        over_items=SimpleNamespace(low=0.02, high=0.21),
        over_tasks=over_tasks and SimpleNamespace(low=over_tasks[0], high=over_tasks[1]),
    )
    assert verdict(change) == (
        direction,
        f"+12.0 points [+2.0, +21.0] over questions, {words}",
    )


def test_tasks_need_as_many_exemplars_as_the_most_shots(tmp_path, monkeypatch):
    tasks = [
        SimpleNamespace(name=f"t{n}", group="held_in", exemplars=tuple(range(n))) for n in range(6)
    ]
    suite = SimpleNamespace(tasks=tasks, select=lambda names: names)
    monkeypatch.setattr("flan_moe.eval.load_suite", lambda path: suite)
    for shots, names in (((0,), "t0 t1 t2 t3 t4 t5"), ((0, 4), "t4 t5")):
        quickstart = Quickstart(tmp_path / names, Settings(shots=shots), report=print)
        assert " ".join(quickstart.suite()) == names


@pytest.fixture
def raw(tmp_path):
    """Six Natural Instructions tasks and two Flan CoT files, as their repositories lay them out."""
    tasks = tmp_path / "natural_instructions" / "tasks"
    tasks.mkdir(parents=True)
    for number in range(6):
        task = {
            "Definition": [f"Add {number} to the number."],
            "Positive Examples": [
                {"input": f"{n}", "output": f"{n + number}", "explanation": ""} for n in (900, 901)
            ],
            "Instances": [
                {"id": f"t{number}-{n}", "input": f"{n}", "output": [f"{n + number}"]}
                for n in range(40)
            ],
        }
        (tasks / f"task{number:03d}_add_{number}.json").write_text(json.dumps(task))
    (tmp_path / "flan_cot").mkdir()
    for name, sign in (("sums_train", 1), ("differences_train", -1)):
        lines = [
            f"What is {50 + n} and {sign * n}?\t{50 + n + sign * n}\tWe reckon with {n}."
            for n in range(40)
        ]
        (tmp_path / "flan_cot" / f"{name}.tsv").write_text("".join(f"{x}\n" for x in lines))
    return tmp_path


def built(raw, out):
    build_quickstart_data(out, raw, 20, report=lambda line: None)
    manifest = json.loads((out / "manifest.json").read_text())
    return {task["name"]: task["group"] for task in manifest["tasks"]}


def test_raw_data_are_found_and_some_tasks_held_out(raw, tmp_path):
    assert find_raw(raw) == {
        "natural_instructions": raw / "natural_instructions" / "tasks",
        "cot": raw / "flan_cot",
    }
    groups = built(raw, tmp_path / "out")
    assert len(groups) == 8
    held_out = [name for name, group in groups.items() if group == "held_out"]
    assert held_out == ["task004_add_4"], "every fifth task of a format"


def test_the_test_split_of_natural_instructions_is_respected(raw, tmp_path):
    splits = raw / "natural_instructions" / "splits" / "default"
    splits.mkdir(parents=True)
    (splits / "test_tasks.txt").write_text("task001_add_1\ntask005_add_5\ntask999_absent\n")
    groups = built(raw, tmp_path / "out")
    assert sorted(n for n, g in groups.items() if g == "held_out") == [
        "task001_add_1",
        "task005_add_5",
    ]


def test_a_folder_without_raw_data_is_refused_by_name(tmp_path):
    with pytest.raises(RecipeError, match=r"--data .*: expected Natural Instructions files"):
        build_quickstart_data(tmp_path / "out", tmp_path, 20, report=lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_raw_file_is_refused_by_name(raw, tmp_path):
    file = raw / "natural_instructions" / "tasks" / "task002_add_2.json"
    file.write_text(file.read_text()[:100])
    with pytest.raises(RecipeError, match=r"task002_add_2\.json"):
        build_quickstart_data(tmp_path / "out", raw, 20, report=lambda line: None)
    assert not (tmp_path / "out").exists()
