"""The sets that Muffin tasks are made of: each format read as its authors wrote it."""

import json
import pickle

import pytest

from flan_moe.data.forms.wordings import WORDINGS
from flan_moe.data.readers import RawDataError
from flan_moe.data.readers.muffin import SETS, muffin_files, read_muffin_task
from flan_moe.data.sources.raw import RawOptions, raw_sources

CHOOSE = "Please choose the correct"
ARC_ROW = {
    "instruction": f"{CHOOSE} answer to the question: Wet: what?\n\n"
    + "Answer1: fire Answer2: a: sea\n\nAnswer format: answer1/answer2",
    "answer": "answer2",
}
PIQA_ROW = {
    "instruction": f"{CHOOSE} solution to the question: boil an egg\n\nSolution1: in water\n\n"
    "Solution2: in sand \n\nAnswer format: solution1/solution2",
    "answer": "solution1",
}
WINOGRANDE_ROW = {
    "instruction": f"{CHOOSE} answer to fill in the blank to complete the given sentence: Al hit "
    "Bo so _ cried.\n\nOption1: Al Option2: Bo Answer format: option1/option2",
    "answer": "option2",
}
ARC_ORIGINAL = {
    "id": "1",
    "question": {
        "stem": "What is wet?",
        "choices": [{"text": "fire", "label": "A"}, {"text": "sea", "label": "B"}],
    },
    "answerKey": "B",
}
CODE = {"code": "int x", "indent": 1}
REPAIR = {
    "code_lines": [{"code": "main() {", "indent": 0}, CODE, {"code": "}", "indent": 0}],
    "gold_code_lines": [
        {"code": "main() {", "indent": 0},
        {"code": "int x ;", "indent": 1},
        {"code": "}", "indent": 0},
    ],
    "gold_linenos": [0, 1, 0],
    "err_line": {"lineno": 2, "msg": "expected ;"},
}
YES_NO = ("yes", "no")
TELL = ("yes", "it is not possible to tell", "no")

# File, row, task, bare problem, fields, options, target.
CASES = [
    (
        "ARC-Easy/train.json",
        ARC_ROW,
        "arc_easy",
        "Wet: what?",
        {"question": "Wet: what?"},
        ("fire", "a: sea"),
        "a: sea",
    ),
    (
        "ARC-Challenge-Train.jsonl",
        ARC_ORIGINAL,
        "arc_challenge",
        "What is wet?",
        {"question": "What is wet?"},
        ("fire", "sea"),
        "sea",
    ),
    (
        "piqa/train.json",
        PIQA_ROW,
        "piqa",
        "boil an egg",
        {"goal": "boil an egg"},
        ("in water", "in sand"),
        "in water",
    ),
    (
        "winogrande/train.json",
        WINOGRANDE_ROW,
        "winogrande",
        "Al hit Bo so _ cried.",
        {"sentence": "Al hit Bo so _ cried."},
        ("Al", "Bo"),
        "Bo",
    ),
    (
        "boolq/train.jsonl",
        {"question": "is it wet", "title": "Sea", "answer": True, "passage": "It is."},
        "bool_q",
        "Sea -- It is.\nis it wet?",
        {"passage": "Sea -- It is.", "question": "is it wet?"},
        YES_NO,
        "yes",
    ),
    (
        "BoolQA/train.json",
        {"sentence": "question: is it wet\npassage: Sea -- It is.", "label": "False"},
        "bool_q",
        "Sea -- It is.\nis it wet?",
        {"passage": "Sea -- It is.", "question": "is it wet?"},
        YES_NO,
        "no",
    ),
    (
        "NLI/CB/train.json",
        {"sentence": "sentence 1: A.\nB.\nsentence 2: C", "label": "neutral"},
        "cb",
        "A.\nB.\nC",
        {"premise": "A.\nB.", "hypothesis": "C"},
        TELL,
        "it is not possible to tell",
    ),
    (
        "NLI/RTE/train.json",
        {"sentence": "sentence 1: A.\nsentence 2: C", "label": "contradiction"},
        "rte",
        "A.\nC",
        {"premise": "A.", "hypothesis": "C"},
        YES_NO,
        "no",
    ),
    (
        "QQP/QQP/train.json",
        {"sentence": "first sentence: A?\nsecond sentence: B?", "label": "True"},
        "glue_qqp",
        "A?\nB?",
        {"first": "A?", "second": "B?"},
        YES_NO,
        "yes",
    ),
    (
        "SC/SST-2/train.json",
        {"sentence": "Text: so dull . ", "label": "Bad"},
        "sst2",
        "so dull .",
        {"text": "so dull ."},
        ("positive", "negative"),
        "negative",
    ),
    (
        "TC/agnews/train.json",
        {"sentence": "Title: T\nText: B\n", "label": "Sports"},
        "ag_news_subset",
        "T\nB",
        {"text": "T\nB"},
        ("World", "Sports", "Business", "Science or Technology"),
        "Sports",
    ),
    (
        "WiC/WiC/train.json",
        {"sentence": "word: call\nA call.\nThe call on him.", "label": "False"},
        "wic",
        "call\nA call.\nThe call on him.",
        {"word": "call", "first": "A call.", "second": "The call on him."},
        YES_NO,
        "no",
    ),
    (
        "MultiRC/MultiRC/train.json",
        {"sentence": "paragraph: P. \nquestion: Q?\ncandidate answer: C", "label": "True"},
        "multirc",
        "P.\nQ?",
        {"passage": "P.", "question": "Q?", "candidate": "C"},
        YES_NO,
        "yes",
    ),
    (
        "COPA/COPA/train.json",
        {
            "sentence": 'Which sentence is the cause of "He fell."? Choose one between A and B.\n'
            "A: Ice.\nB: Sun.",
            "label": "A",
        },
        "copa",
        "He fell.\ncause",
        {"asked": "cause", "premise": "He fell."},
        ("Ice.", "Sun."),
        "Ice.",
    ),
    (
        "err-train.jsonl",
        REPAIR,
        "dr_repair_no_errors",
        "main() {\n  int x\n}",
        {"code": "main() {\n  int x\n}"},
        None,
        "main() {\n  int x ;\n}",
    ),
    (
        "err-train.jsonl",
        REPAIR,
        "dr_repair_plain_code",
        "main() {\n  int x\n}",
        {"code": "main() {\n  int x\n}", "message": "expected ;"},
        None,
        "main() {\n  int x ;\n}",
    ),
    (
        "err-train.jsonl",
        REPAIR,
        "dr_repair_line_numbers",
        "main() {\n  int x\n}",
        {"code": "1 main() {\n2   int x\n3 }", "message": "line 3: expected ;"},
        None,
        "2: int x ;",
    ),
    (
        "err-train.jsonl",
        REPAIR,
        "dr_repair_error_comments",
        "main() {\n  int x\n}",
        {"code": "main() {\n  int x\n} // error: expected ;"},
        None,
        "main() {\n  int x ;\n}",
    ),
]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(lines if path.suffix == ".jsonl" else json.dumps(rows))
    return path


@pytest.mark.parametrize(
    ("name", "row", "task", "bare", "fields", "options", "target"),
    CASES,
    ids=[f"{case[2]}-{case[0]}" for case in CASES],
)
def test_a_row_of_each_format(tmp_path, name, row, task, bare, fields, options, target):
    write(tmp_path / name, [row, row])
    found = {group.found.task: group for group in muffin_files(tmp_path)}
    read = read_muffin_task(pickle.loads(pickle.dumps(found[task])))
    assert (read.name, read.read, read.dropped) == (task, 2, {"repeated record": 1})
    (record,) = read.records
    assert (record.input, dict(record.fields)) == (bare, fields)
    assert (record.options, record.targets) == (options, (target,))


def test_the_wordings_of_a_set_are_for_its_problems():
    names = [one.task for one in SETS]
    assert len(set(names)) == len(names) == 20
    for case in CASES:
        one = next(one for one in SETS if one.task == case[2])
        places = WORDINGS[one.wordings].places
        assert places - {"options"} == case[4].keys()
        assert ("options" in places) == (case[5] is not None)


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("ARC-Easy/train.json", {"instruction": "x", "answer": "answer1"}, "row 0: expected an in"),
        ("ARC-Easy/train.json", {**ARC_ROW, "answer": "answer3"}, "numbered 1, 2 and the answer i"),
        ("ARC-Easy/train.json", {"answer": "answer1"}, "row 0: instruction is None"),
        ("ARC-Easy-Train.jsonl", {**ARC_ORIGINAL, "answerKey": "C"}, ":1: answerKey is 'C'"),
        ("ARC-Easy-Train.jsonl", {"question": "x"}, ":1: question: expected an object"),
        ("boolq/train.jsonl", {"answer": "yes"}, ":1: answer is 'yes'; expected true or false"),
        ("CB/train.json", {"sentence": "x", "label": "neutral"}, "row 0: sentence: expected"),
        ("SST-2/train.json", {"sentence": "x", "label": "So"}, "row 0: label is 'So'"),
        ("SST-2/train.json", {"sentence": "\ud800", "label": "Bad"}, "not Unicode text"),
        ("err-train.jsonl", {**REPAIR, "gold_linenos": [1, 1, 0]}, ":1: err_line.lineno is 2 and"),
        ("err-train.jsonl", {**REPAIR, "gold_code_lines": [CODE]}, "1 gold_code_lines"),
        ("err-train.jsonl", {**REPAIR, "code_lines": [{}]}, r"code_lines\[0\]: expected an object"),
        ("SST-2/train.json", 7, "row 0: int; expected an object"),
    ],
)
def test_a_row_of_another_form_is_named(tmp_path, name, row, message):
    file = write(tmp_path / name, [row])
    with pytest.raises(RawDataError, match=message) as caught:
        read_muffin_task(muffin_files(tmp_path)[0])
    assert str(file) in str(caught.value)


def test_a_cut_file_is_named(tmp_path):
    file = write(tmp_path / "CB/train.json", [CASES[6][1]])
    file.write_text(file.read_text()[:-20])
    with pytest.raises(RawDataError, match=r"train\.json: not valid JSON: .*truncated"):
        read_muffin_task(muffin_files(tmp_path)[0])
    file.write_text('{"a": 1}')
    with pytest.raises(RawDataError, match="dict; expected a list of objects"):
        read_muffin_task(muffin_files(tmp_path)[0])


def test_test_files_are_taken_only_when_asked_for_and_never_those_of_evaluation_suites(tmp_path):
    for name, row in (
        ("ARC-Easy/test.json", ARC_ROW),
        ("openbookqa/test.json", ARC_ROW),
        ("boolq/dev.jsonl", CASES[4][1]),
        ("CB/dev.json", CASES[6][1]),
        ("ARC-Challenge-Test.jsonl", ARC_ORIGINAL),
        ("ARC-Challenge-Dev.jsonl", ARC_ORIGINAL),
        ("piqa/test.json", PIQA_ROW),
        ("err-dev.1000.jsonl", REPAIR),
    ):
        write(tmp_path / name, [row])
    with pytest.raises(RawDataError, match="expected a folder with files that end in one of: arc-"):
        muffin_files(tmp_path)
    tasks = [group.found.task for group in muffin_files(tmp_path, stand_ins=True)]
    assert [task for task in tasks if not task.startswith("dr_repair")] == ["piqa"]
    assert len(tasks) == 5
    write(tmp_path / "piqa/train.json", [PIQA_ROW])
    piqa = muffin_files(tmp_path, stand_ins=True)[0]
    assert [file.name for file, _ in piqa.files] == ["train.json"]


def test_the_tasks_are_sources_with_all_four_settings(tmp_path):
    rows = [
        {
            "sentence": f"Text: film {i} was {('fine', 'bad')[i % 2]}",
            "label": ("Good", "Bad")[i % 2],
        }
        for i in range(200)
    ]
    write(tmp_path / "SST-2/train.json", rows)
    (source,) = raw_sources(RawOptions(), muffin=tmp_path)
    assert (source.name, source.mixture, source.cot) == ("sst2", "muffin", False)
    content = pickle.loads(pickle.dumps(source)).open(lambda prompt: len(prompt) < 2000)
    kinds = [example.template.split("/")[0] for example in content.train]
    for kind in ("zs_opt", "zs_noopt", "fs_opt", "fs_noopt"):
        assert kinds.count(kind) == pytest.approx(len(kinds) / 4, abs=3)
    assert (content.kind, content.chance) == ("multiple_choice", 0.5)
    assert all(item.options == ("positive", "negative") for item in content.items)
    assert all("Options:\n- positive\n- negative" in item.input for item in content.items)
