"""Raw tasks divided: nothing evaluated is trained on, options are found, forms are ours."""

import json
from collections import Counter
from pathlib import Path

import pytest

from flan_moe.data.build import BuildOptions, build_data_directory
from flan_moe.data.readers import RawDataError, RawTask, Record
from flan_moe.data.readers.record import keep_usable
from flan_moe.data.sources.raw import (
    RawOptions,
    answer_options,
    divide,
    raw_sources,
    task_forms,
)
from flan_moe.data.storage.manifest import read_manifest
from flan_moe.data.storage.shards import read_mds
from flan_moe.data.tokenization.tokenizer import load_tokenizer


def raw_task(records, definition=None, examples=()):
    kept, dropped = keep_usable(records)
    return RawTask(
        name="t",
        file=Path("t.json"),
        definition=definition,
        examples=examples,
        records=kept,
        read=len(records),
        dropped=dropped,
    )


def numbered(count):
    return [Record(input=f"problem {i}", targets=(str(i),)) for i in range(count)]


def inputs(records):
    return [record.input for record in records]


def fits(prompt):
    return True


@pytest.mark.parametrize("by_file_order", [True, False])
def test_no_problem_is_used_twice_and_none_is_lost(by_file_order):
    records = [*numbered(100), *(Record(input=f"problem {i}", targets=("x",)) for i in range(50))]
    options = RawOptions(evaluation=15, validation=10)
    divided = divide(raw_task(records), options, by_file_order=by_file_order, held_out=False)
    evaluation, validation, train = map(
        set, map(inputs, (divided.evaluation, divided.validation, divided.train))
    )
    assert len(divided.evaluation) == 15
    assert len(evaluation) == 15, "a problem with two answers is asked once"
    assert not evaluation & train
    assert not evaluation & validation
    assert not train & validation
    assert not evaluation & set(inputs(divided.exemplars))
    assert len(divided.exemplars) == 8
    assert len(divided.validation) == 10
    in_order = inputs(divided.evaluation) == [f"problem {i}" for i in range(15)]
    assert in_order == by_file_order


def test_small_tasks_give_at_most_a_quarter_away():
    divided = divide(raw_task(numbered(20)), RawOptions(), by_file_order=True, held_out=False)
    assert (len(divided.evaluation), len(divided.validation), len(divided.train)) == (5, 5, 10)


def test_a_held_out_task_is_all_evaluation():
    options = RawOptions(evaluation=1000)
    divided = divide(raw_task(numbered(100)), options, by_file_order=True, held_out=True)
    assert len(divided.evaluation) == 92
    assert len(divided.exemplars) == 8
    assert divided.train == []


def test_training_can_be_capped_and_the_rest_is_counted():
    options = RawOptions(evaluation=10, validation=10, examples=30)
    divided = divide(raw_task(numbered(100)), options, by_file_order=True, held_out=False)
    assert len(divided.train) == 30
    assert divided.dropped == {"over the number of examples per task": 50}
    again = divide(raw_task(numbered(100)), options, by_file_order=True, held_out=False)
    assert again.train == divided.train


def test_labels_make_a_multiple_choice():
    records = [Record(input=str(i), targets=(("yes", "no")[i % 2],)) for i in range(20)]
    options_of, kind, chance = answer_options(records)
    assert (options_of(records[0]), kind, chance) == (("no", "yes"), "multiple_choice", 0.5)
    for changed in (
        records[:8],  # too few uses of each label to call them labels
        [Record(input=str(i), targets=(str(i % 12),)) for i in range(200)],
        [*records, Record(input="x", targets=("yes", "no"))],  # several right answers
    ):
        assert answer_options(changed)[1:] == ("generate", 0.0)


def test_listed_options_make_a_multiple_choice():
    records = [
        Record(input=f"Which?\nOptions:\n- a{i}\n- b{i}\n- c{i}\n- d{i}", targets=(f"b{i}",))
        for i in range(40)
    ]
    options_of, kind, chance = answer_options(records)
    assert (kind, chance) == ("multiple_choice", 0.25)
    assert options_of(records[3]) == ("a3", "b3", "c3", "d3")
    broken = Record(input="Which?\nOptions:\n- a\n- b", targets=("z",))
    assert answer_options([*records, broken])[0](broken) is None


def test_definition_examples_are_never_the_question_or_an_evaluation_problem():
    examples = (("problem 3", "3"), ("problem 90", "90"), ("shown", "s"))
    task = raw_task(numbered(100), definition="Say the number.", examples=examples)
    options = RawOptions(evaluation=10)
    divided = divide(task, options, by_file_order=True, held_out=False)
    assert inputs(divided.exemplars)[:2] == ["problem 90", "shown"]
    forms = task_forms(task, "niv2", divided.evaluation)
    shapes = Counter()
    for example in forms.examples(divided.train, seed="s", fits=fits):
        shapes[example.template.split("/")[1]] += 1
        assert "Say the number." in example.prompt
        assert len(set(example.meta["shown"])) == len(example.meta["shown"])
        for record in divided.evaluation:
            assert f"{record.input}\n" not in example.prompt + "\n"
    assert set(shapes) == {
        "zero_shot",
        "few_shot",
        "definition_examples",
        "definition_instances",
    }


def write_raw(path):
    """Two Natural Instructions tasks, one chain-of-thought file, one jsonl file."""
    (path / "ni").mkdir(parents=True)
    for name, answers in (("task1_label", "yes no"), ("task2_text", None)):
        task = {
            "Definition": [f"Definition of {name}."],
            "Positive Examples": [{"input": "shown", "output": "out", "explanation": ""}],
            "Instances": [
                {"input": f"{name} {i}", "output": [answers.split()[i % 2] if answers else f"o{i}"]}
                for i in range(60)
            ],
        }
        (path / "ni" / f"{name}.json").write_text(json.dumps(task))
    rows = [f"What is {i} + 1?\\nThink.\t{i + 1}\tAdd {i} and 1.\n" for i in range(60)]
    (path / "sums_train.tsv").write_text("".join(rows))
    lines = [json.dumps({"prompt": f"p{i}", "target": f"t{i}"}) + "\n" for i in range(60)]
    (path / "mine.jsonl").write_text("".join(lines))
    return {
        "natural_instructions": path / "ni",
        "cot": path / "sums_train.tsv",
        "jsonl": path / "mine.jsonl",
    }


def build(paths, out, held_out=("task2_text",), evaluation=10):
    options = RawOptions(evaluation=evaluation, validation=8)
    sources = raw_sources(options, held_out=held_out, **paths)
    chosen = BuildOptions(name="raw", source="test", vocab_size=600)
    return build_data_directory(out, sources, chosen, report=lambda line: None)


def test_the_three_formats_build_together(tmp_path):
    manifest = build(write_raw(tmp_path / "raw"), tmp_path / "out")
    counts = {t["name"]: (t["mixture"], t["group"], t["train"], t["eval"]) for t in manifest.tasks}
    assert counts == {
        "task1_label": ("niv2", "held_in", 42, 10),
        "task2_text": ("niv2", "held_out", 0, 10),
        "cot_sums": ("cot", "held_in", 42, 10),
        "mine": ("jsonl", "held_in", 42, 10),
    }
    assert set(manifest.splits["train"]) == {"niv2", "cot", "jsonl"}
    tasks = json.loads((tmp_path / "out" / "eval" / "suite.json").read_text())["tasks"]
    kinds = {task["name"]: (task["kind"], task["cot"], task["chance"]) for task in tasks}
    assert kinds["task1_label"] == ("multiple_choice", False, 0.5)
    assert kinds["cot_sums"] == ("generate", True, 0.0)
    items = (tmp_path / "out" / "eval" / "cot_sums.jsonl").read_text().splitlines()
    item = json.loads(items[0])
    assert "\nThink." in item["input"]
    assert item["rationale"].startswith("Add ")


def test_every_reference_of_a_problem_is_an_accepted_answer(tmp_path):
    paths = write_raw(tmp_path / "raw")
    file = paths["natural_instructions"] / "task2_text.json"
    task = json.loads(file.read_text())
    task["Instances"][0]["output"] = ["o0", "nought", "o0"]
    file.write_text(json.dumps(task))
    build(paths, tmp_path / "out")
    lines = (tmp_path / "out" / "eval" / "task2_text.jsonl").read_text().splitlines()
    assert [json.loads(line)["targets"] for line in lines[:2]] == [["o0", "nought"], ["o1"]]


def test_a_damaged_raw_file_leaves_nothing(tmp_path):
    paths = write_raw(tmp_path / "raw")
    paths["cot"].write_text(paths["cot"].read_text()[:-5])
    with pytest.raises(RawDataError, match=r"sums_train\.tsv:60: .*truncated"):
        build(paths, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["raw"]


def test_held_out_names(tmp_path):
    paths = write_raw(tmp_path / "raw")
    listing = tmp_path / "test_tasks.txt"
    listing.write_text("task1_label\ntask999_not_here\n")

    def groups(held_out):
        sources = raw_sources(RawOptions(), held_out=held_out, **paths)
        return {source.name for source in sources if source.group == "held_out"}

    assert groups([f"@{listing}", "cot_sums"]) == {"task1_label", "cot_sums"}
    with pytest.raises(ValueError, match="held_out: no task 'task999' among the 4 found"):
        groups(["task999"])
    with pytest.raises(ValueError, match=r"held_out: @mlu: no such file, and no evaluation set"):
        groups(["@mlu"])
    with pytest.raises(ValueError, match="no raw data"):
        raw_sources(RawOptions())


def test_what_overlaps_with_an_evaluation_set_can_be_held_out(tmp_path):
    for name in ("gsm8k", "ecqa"):
        rows = "".join(f"What is {i}?\t{i}\tIt is {i}.\n" for i in range(40))
        (tmp_path / f"{name}_train.tsv").write_text(rows)
    for entry, apart in (("@gsm8k", True), ("@svamp", False), ("@evaluation", True)):
        sources = {s.name: s for s in raw_sources(RawOptions(), cot=tmp_path, held_out=[entry])}
        assert (sources["cot_gsm8k"].group == "held_out") == apart
        assert sources["cot_ecqa"].group == "held_in"
    assert sources["cot_gsm8k"].inputs == (tmp_path / "gsm8k_train.tsv",)
    assert "MIT" in sources["cot_gsm8k"].provenance["licence"]


def suite_inputs(out, task):
    file = out / "eval" / f"{task}.jsonl"
    return [json.loads(line)["input"] for line in file.read_text().splitlines()]


def test_a_question_that_another_file_trains_on_is_removed_in_any_wording(tmp_path):
    """Two files with the same questions, one of them held out: none is left that was trained."""
    questions = [f"How many legs have {i} dogs?" for i in range(60)]
    (tmp_path / "cot").mkdir()
    for name, texts in (("a", questions), ("b", [q.upper().replace(" ", "  ") for q in questions])):
        rows = "".join(f"{text}\t{i}\tCount {i}.\n" for i, text in enumerate(texts))
        (tmp_path / "cot" / f"{name}_train.tsv").write_text(rows)
    out = tmp_path / "out"
    lines = []
    build_data_directory(
        out,
        raw_sources(
            RawOptions(evaluation=52, validation=8), cot=tmp_path / "cot", held_out=["cot_b"]
        ),
        BuildOptions(name="raw", source="test", vocab_size=400),
        report=lines.append,
    )
    entries = {task["name"]: task for task in read_manifest(out).tasks}
    removed = entries["cot_b"]["eval_removed"]
    assert removed > 30, "all but those that the other file evaluates on as well"
    assert entries["cot_b"]["eval"] == 52 - removed
    assert entries["cot_a"]["eval_removed"] == 0
    assert f"  cot_b: {removed} of 52 questions are also in training" in lines
    tokenizer = load_tokenizer(out / "tokenizer")
    shown = "\n".join(
        tokenizer.decode(sample["input_ids"].tolist(), skip_special_tokens=True)
        for split in ("train", "validation")
        for sample in read_mds(out / split / "cot")
    )
    for asked in suite_inputs(out, "cot_b"):
        number = asked.split("HAVE  ")[1].split()[0]
        assert f"have {number} dogs" not in shown


def test_the_same_input_under_another_definition_is_removed(tmp_path):
    for name, definition in (("task1_a", "Name the mood."), ("task2_b", "How does it sound?")):
        task = {
            "Definition": [definition],
            "Positive Examples": [{"input": "shown", "output": "out", "explanation": ""}],
            "Instances": [{"input": f"sentence {i}", "output": [f"o{i}"]} for i in range(40)],
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(task))
    manifest = build(
        {"natural_instructions": tmp_path}, tmp_path / "out", held_out=["task2_b"], evaluation=20
    )
    # The other task evaluates on the first ten sentences, and trains or validates on the rest.
    assert [task["eval_removed"] for task in manifest.tasks] == [0, 10]
    assert all(
        int(asked.split("sentence ")[1].split()[0].rstrip("]")) < 10
        for asked in suite_inputs(tmp_path / "out", "task2_b")
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [({"evaluation": -1}, "evaluation is -1"), ({"examples": 0}, "examples")],
)
def test_bad_numbers_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        RawOptions(**options)


def test_a_list_of_held_out_tasks_that_is_no_text_is_named(tmp_path):
    (tmp_path / "x.jsonl").touch()
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"held_out: .*list\.txt: not UTF-8"):
        raw_sources(RawOptions(), jsonl=tmp_path, held_out=[f"@{tmp_path / 'list.txt'}"])
