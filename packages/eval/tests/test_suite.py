"""A suite is read as written, or refused with the place of the mistake."""

import json
from dataclasses import replace

import pytest

from flan_moe.eval import Item, SuiteError, load_suite


def test_a_suite_is_read_whole(suite_dir):
    suite = load_suite(suite_dir)
    assert [task.name for task in suite.tasks] == ["sums", "more_sums", "colours"]
    sums, _, colours = suite.tasks
    assert (len(sums.items), len(sums.exemplars)) == (12, 3)
    assert sums.modes == ("direct", "cot")
    assert colours.modes == ("direct",)
    assert colours.items[1] == Item(
        id="colours-1",
        input="colours : what is 1 plus 0 a ?",
        targets=("blue",),
        options=("red", "blue", "green", "big car"),
    )
    assert load_suite(suite_dir / "suite.json") == suite


def edit_suite(suite_dir, change):
    file = suite_dir / "suite.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda r: r.update(version=1), r"suite\.json: version: 1; expected 2"),
        (lambda r: r.update(version=True), "version: true; expected 2"),
        (lambda r: r.update(format="other"), 'format: "other"'),
        (lambda r: r.pop("name"), "key 'name' is missing"),
        (lambda r: r.update(extra=1), "unknown key 'extra'"),
        (lambda r: r.update(tasks=[]), "tasks: empty"),
        (lambda r: r.update(tasks={}), "tasks: {}; expected a list"),
        (lambda r: r["tasks"][1].update(group="unseen"), r"tasks\[1\]: group: \"unseen\""),
        (lambda r: r["tasks"][1].update(name="sums"), r"tasks\[1\]: name: 'sums' is used twice"),
        (lambda r: r["tasks"][0].update(name="../x"), r"tasks\[0\]: name"),
        (lambda r: r["tasks"][0].update(chance=1.0), r"tasks\[0\]: chance: 1.0"),
        (lambda r: r["tasks"][0].update(chance=10**400), r"tasks\[0\]: chance: 10+"),
        (lambda r: r["tasks"][0].update(chance="a"), r"tasks\[0\]: chance: \"a\""),
        (lambda r: r["tasks"][0].update(cot="yes"), r"tasks\[0\]: cot: \"yes\""),
        (lambda r: r["tasks"][0].update(cot_cue=""), r"tasks\[0\]: cot_cue"),
        (lambda r: r["tasks"][0].update(kind="rank"), r"tasks\[0\]: kind"),
        (lambda r: r["tasks"][0].update(file="../sums.jsonl"), r"tasks\[0\]: file"),
        (lambda r: r["tasks"][0].update(file="none.jsonl"), r"none\.jsonl: no such file"),
        (lambda r: r["tasks"][0].update(shots=3), r"tasks\[0\]: unknown key 'shots'"),
    ],
)
def test_mistakes_in_suite_json_are_named(suite_dir, change, complaint):
    edit_suite(suite_dir, change)
    with pytest.raises(SuiteError, match=complaint):
        load_suite(suite_dir)


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("sums", "{", "sums.jsonl:3: not JSON at column"),
        ("sums", "[]", r"sums.jsonl:3: \[\]; expected a JSON object"),
        ("sums", "", "sums.jsonl:3: blank line"),
        ("sums", "[" * 100_000, "sums.jsonl:3: nested too deeply"),
        ("sums", {"input": "\ud800"}, r"sums.jsonl:3: '\\ud800' is half of a character"),
        ("sums", {"targets": [" "]}, "sums.jsonl:3: targets: .* not blank"),
        ("colours", {"options": ["red", " "]}, "colours.jsonl:3: options: .* not blank"),
        ("sums", '{"id": "x"}', "sums.jsonl:3: key 'targets' is missing"),
        ("sums", '{"id": 7}', "sums.jsonl:3: "),
        ("sums", {"input": ""}, "sums.jsonl:3: input: "),
        ("sums", {"targets": "7"}, 'sums.jsonl:3: targets: "7"; expected a list of strings'),
        ("sums", {"id": "sums-0"}, "sums.jsonl:3: id: 'sums-0' is used twice"),
        ("sums", {"question": "?"}, "sums.jsonl:3: unknown key 'question'"),
        ("sums", '{"id": "a", "id": "b"}', "sums.jsonl:3: key 'id' is repeated"),
        ("colours", {"options": None}, "colours.jsonl:3: options: null"),
        ("colours", {"options": ["red"]}, "colours.jsonl:3: options: "),
        ("colours", {"options": ["red", "red"]}, "colours.jsonl:3: options: "),
        ("sums", {"targets": []}, r"sums.jsonl:3: targets: \[\]; expected one or more"),
        ("sums", {"targets": ["7", "7"]}, "sums.jsonl:3: targets: .* different strings"),
        (
            "colours",
            {"targets": ["red", "pink"]},
            "colours.jsonl:3: targets: .*some of the options",
        ),
        ("sums.exemplars", {"rationale": None}, "sums.exemplars.jsonl:3: rationale: null"),
    ],
)
def test_mistakes_in_items_are_named_with_their_line(suite_dir, file, line, complaint):
    path = suite_dir / f"{file}.jsonl"
    lines = path.read_text().splitlines()
    lines[2] = line if isinstance(line, str) else json.dumps(json.loads(lines[2]) | line)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(SuiteError, match=complaint):
        load_suite(suite_dir)


def test_bytes_that_are_not_text_are_named(suite_dir):
    with (suite_dir / "sums.jsonl").open("ab") as file:
        file.write(b'{"id": "\xff"}\n')
    with pytest.raises(SuiteError, match=r"sums\.jsonl:13: not UTF-8"):
        load_suite(suite_dir)


def test_an_exemplar_that_is_also_a_question_is_refused(suite_dir):
    row = (suite_dir / "sums.jsonl").read_text().splitlines()[4]
    with (suite_dir / "sums.exemplars.jsonl").open("a") as file:
        file.write(row + "\n")
    with pytest.raises(SuiteError, match=r"sums\.exemplars\.jsonl:4: input: the same as item"):
        load_suite(suite_dir)


def test_a_line_separator_inside_a_string_does_not_split_the_line(suite_dir):
    row = {"id": "u", "input": "a\u2028b", "targets": ["1"], "options": None, "rationale": None}
    with (suite_dir / "sums.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    assert load_suite(suite_dir).tasks[0].items[-1].input == "a\u2028b"


def test_a_missing_suite_is_a_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"suite\.json"):
        load_suite(tmp_path)


def test_the_content_hash_sees_every_part_of_a_task(suite_dir):
    task = load_suite(suite_dir).tasks[0]
    changed = [
        replace(task, chance=0.1),
        replace(task, answer_cue="answer:"),
        replace(task, items=task.items[:-1]),
        replace(task, exemplars=task.exemplars[::-1]),
        replace(task, items=(replace(task.items[0], targets=("1", "999")), *task.items[1:])),
    ]
    hashes = {task.content_hash(), *(other.content_hash() for other in changed)}
    assert len(hashes) == 6


def test_selecting_tasks(suite_dir):
    suite = load_suite(suite_dir)
    assert [task.name for task in suite.select(("colours",)).tasks] == ["colours"]
    with pytest.raises(ValueError, match="'colour' is not in suite 'toy'"):
        suite.select(("colour",))
