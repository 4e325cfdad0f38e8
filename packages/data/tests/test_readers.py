"""Readers of the raw formats: what they keep, what they count, how they refuse."""

import gzip
import json

import pytest

from flan_moe.data.readers import (
    RawDataError,
    cot_files,
    jsonl_files,
    natural_instructions_files,
    read_cot_task,
    read_jsonl_task,
    read_natural_instructions_task,
    record,
)
from flan_moe.data.readers.flan_cot import read_cot_rows

TASK = {
    "Definition": ["Add the numbers."],
    "Positive Examples": [{"input": "1 1", "output": "2", "explanation": "e"}],
    "Negative Examples": [],
    "Instances": [
        {"id": "task1-a", "input": " 2 2 ", "output": ["4", "four "]},
        {"id": "task1-b", "input": "3 3", "output": ["6"]},
        {"id": "task1-c", "input": "3 3", "output": ["6"]},
        {"id": "task1-d", "input": "", "output": ["6"]},
        {"id": "task1-e", "input": "4 4", "output": [" "]},
    ],
}


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_natural_instructions(tmp_path):
    task = read_natural_instructions_task(write(tmp_path / "task1_add.json", TASK))
    assert task.name == "task1_add"
    assert task.definition == "Add the numbers."
    assert task.examples == (("1 1", "2"),)
    assert [(r.input, r.targets) for r in task.records] == [("2 2", ("4", "four")), ("3 3", ("6",))]
    assert task.read == 5
    assert task.dropped == {"repeated record": 1, "empty input": 1, "empty answer": 1}
    assert task.read == len(task.records) + task.dropped.total()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Definition": None}, "Definition: missing or not a list"),
        ({"Definition": [""]}, "Definition: expected one or more non-empty strings"),
        ({"Instances": {}}, "Instances: missing or not a list"),
        ({"Instances": []}, "no usable record among 0"),
        ({"Instances": [*TASK["Instances"], {"input": 3}]}, r"Instances\[5\]: expected an object"),
        ({"Instances": [{"input": "a", "output": [1]}]}, r"Instances\[0\]: output: expected"),
        ({"Instances": [{"input": "a", "output": []}]}, r"Instances\[0\]: output: expected"),
        ({"Positive Examples": [{"output": "a"}]}, r"Positive Examples\[0\]: expected an object"),
    ],
)
def test_a_malformed_task_is_refused_by_file_and_record(tmp_path, change, message):
    file = write(tmp_path / "task1_add.json", {**TASK, **change})
    with pytest.raises(RawDataError, match=rf"task1_add\.json: .*{message}|{message}") as caught:
        read_natural_instructions_task(file)
    assert str(file) in str(caught.value)


def test_truncated_json_names_file_and_line(tmp_path):
    text = json.dumps(TASK, indent=1)
    file = write(tmp_path / "task1_add.json", text[: len(text) // 2])
    line = text[: len(text) // 2].count("\n") + 1
    with pytest.raises(RawDataError, match=rf"task1_add\.json:({line}|{line - 1}): not valid JSON"):
        read_natural_instructions_task(file)
    write(file, "[1]")
    with pytest.raises(RawDataError, match="list; expected a JSON object"):
        read_natural_instructions_task(file)
    file.write_bytes(b'{"Definition": ["\xff\xfe"]}')
    with pytest.raises(RawDataError, match="not UTF-8"):
        read_natural_instructions_task(file)


def test_text_that_no_tokenizer_takes_is_refused_by_its_record(tmp_path):
    half = {**TASK, "Instances": [*TASK["Instances"], {"input": "\ud800", "output": ["x"]}]}
    where = rf"task1\.json: Instances\[{len(TASK['Instances'])}\]: not Unicode text"
    with pytest.raises(RawDataError, match=where):
        read_natural_instructions_task(write(tmp_path / "task1.json", half))
    row = json.dumps({"prompt": "a", "target": "\udfff"})
    with pytest.raises(RawDataError, match=r"x\.jsonl:1: not Unicode text"):
        read_jsonl_task(write(tmp_path / "x.jsonl", row + "\n"))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"Definition": ' + "9" * 6000 + "}"])
def test_json_that_python_gives_up_on_is_refused_by_file(tmp_path, text):
    with pytest.raises(RawDataError, match=r"task1\.json: not a task"):
        read_natural_instructions_task(write(tmp_path / "task1.json", text))
    with pytest.raises(RawDataError, match=r"x\.jsonl:1: not valid JSON"):
        read_jsonl_task(write(tmp_path / "x.jsonl", text + "\n"))


def test_files_are_found_in_order(tmp_path):
    (tmp_path / "tasks").mkdir()
    for name in ("task2_b.json", "task1_a.json", "README.json"):
        write(tmp_path / "tasks" / name, TASK)
    for path in (tmp_path, tmp_path / "tasks"):
        assert [f.name for f in natural_instructions_files(path)] == [
            "task1_a.json",
            "task2_b.json",
        ]
    assert natural_instructions_files(tmp_path / "tasks" / "task2_b.json")[0].stem == "task2_b"
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(RawDataError, match=r"expected a Flan chain-of-thought \.tsv file"):
            cot_files(path)


COT = "How many?\\nOptions:\\n(A) 1\t (A) \tOne.\\nSo A.\nWhy?\tno\t\nWhy?\t\tBecause.\n"


def test_flan_cot(tmp_path):
    task = read_cot_task(write(tmp_path / "aqua_train.tsv", COT))
    assert task.name == "cot_aqua"
    (record,) = task.records
    assert record.input == "How many?\nOptions:\n(A) 1"
    assert record.targets == ("(A)",)
    assert record.rationale == "One.\nSo A."
    assert task.read == 3
    assert task.dropped == {"no rationale": 1, "empty answer": 1}


def test_flan_cot_is_read_row_by_row(tmp_path):
    rows = read_cot_rows(write(tmp_path / "x.tsv", "a\tb\tc\nbroken\n"))
    assert next(rows).input == "a"
    with pytest.raises(RawDataError, match=r"x\.tsv:2: 1 tab-separated columns; expected 3"):
        next(rows)


def test_only_line_feeds_end_rows(tmp_path):
    file = tmp_path / "x.tsv"
    file.write_bytes("a\u2028b\x0bc\td\te\r\n".encode())
    (row,) = read_cot_rows(file)
    assert (row.input, row.rationale) == ("a\u2028b\x0bc", "e")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a\tb\tc\na\tb\tc", r"x\.tsv:2: the last line has no line end; the file is truncated"),
        (b"a\tb\tc\na\tb", r"x\.tsv:2: .*truncated"),
        (b"a\tb\tc\n\xff\tb\tc\n", r"x\.tsv:2: not UTF-8"),
        (b"a\tb\tc\td\n", r"x\.tsv:1: 4 tab-separated columns"),
        (b"", "no usable row among 0"),
    ],
)
def test_a_damaged_tsv_is_refused_by_file_and_line(tmp_path, data, message):
    file = tmp_path / "x.tsv"
    file.write_bytes(data)
    with pytest.raises(RawDataError, match=message):
        read_cot_task(file)


def test_jsonl(tmp_path):
    rows = [{"prompt": "a ", "target": "b", "more": 1}, {"prompt": "a", "target": "b"}]
    file = write(tmp_path / "mine.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    task = read_jsonl_task(file)
    assert (task.name, task.read, task.dropped) == ("mine", 2, {"repeated record": 1})
    assert task.records[0].input == "a"
    for line, message in (
        ('{"prompt": "a"}\n', "expected an object with the strings"),
        ("[]\n", "expected an object with the strings"),
        ("{\n", "not valid JSON"),
    ):
        write(file, json.dumps(rows[0]) + "\n" + line)
        with pytest.raises(RawDataError, match=rf"mine\.jsonl:2: {message}"):
            read_jsonl_task(file)


def test_a_missing_file_is_named(tmp_path):
    for read in (read_cot_task, read_natural_instructions_task, read_jsonl_task):
        with pytest.raises(RawDataError, match="gone: no such file"):
            read(tmp_path / "gone")


def test_compressed_jsonl_is_read_as_plain(tmp_path):
    rows = [{"prompt": f"p{i}", "target": "t"} for i in range(50)]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "mine.jsonl.gz").write_bytes(gzip.compress(text))
    (file,) = jsonl_files(tmp_path)
    task = read_jsonl_task(file)
    assert (task.name, len(task.records)) == ("mine", 50)
    file.write_bytes(gzip.compress(text)[:-30])
    with pytest.raises(RawDataError, match=r"mine\.jsonl\.gz:\d+: the gzip file is truncated"):
        read_jsonl_task(file)


def test_a_line_without_end_in_sight_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "LONGEST_LINE", 100)
    with pytest.raises(RawDataError, match=r"x\.jsonl:1: longer than 100 bytes"):
        read_jsonl_task(write(tmp_path / "x.jsonl", "x" * 101 + "\n"))


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    (tmp_path / "x_train.tsv").write_bytes(b"\xef\xbb\xbfq\ta\tc\n")
    assert [row.input for row in read_cot_rows(tmp_path / "x_train.tsv")] == ["q"]
