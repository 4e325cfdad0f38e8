"""Many Natural Instructions tasks in one file, plain or compressed."""

import gzip
import json
import lzma
import pickle

import pytest

from flan_moe.data.readers import RawDataError
from flan_moe.data.readers.natural_instructions_lines import read_task_line, task_lines
from flan_moe.data.sources.raw import RawOptions, raw_sources


def task(name, count=40):
    return {
        "task": name,
        "Definition": [f"Definition of {name}."],
        "Positive Examples": [{"input": "shown", "output": "out", "explanation": "It says so."}],
        "Instances": [{"input": f"{name} {i}", "output": [f"o{i}", "p"]} for i in range(count)],
    }


def lines(*tasks):
    return "".join(json.dumps(one) + "\n" for one in tasks).encode()


PACK = {"x.jsonl": bytes, "x.jsonl.gz": gzip.compress, "x.jsonl.xz": lzma.compress}


@pytest.mark.parametrize("name", PACK)
def test_every_line_is_a_task_whatever_the_compression(tmp_path, name):
    file = tmp_path / name
    file.write_bytes(PACK[name](lines(task("task1_a"), task("task2_b"))))
    found = task_lines(file)
    assert [line.name for line in found] == ["task1_a", "task2_b"]
    read = read_task_line(pickle.loads(pickle.dumps(found[1])))
    assert (read.name, read.definition, read.read) == ("task2_b", "Definition of task2_b.", 40)
    assert read.records[3].targets == ("o3", "p")
    assert (read.examples, read.explanations) == ((("shown", "out"),), ("It says so.",))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lines(task("task1_a"))[:-1], r":1: the last line has no line end; the file is truncated"),
        (lines(task("a"), task("a")), ":2: task 'a' is in line 1 already"),
        (lines({"Definition": ["x"]}), ":1: expected an object with the task's name"),
        (b"{\n", ":1: not valid JSON"),
        (b"", "no lines"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path, data, message):
    (tmp_path / "x.jsonl").write_bytes(data)
    with pytest.raises(RawDataError, match=r"x\.jsonl.*" + message):
        task_lines(tmp_path / "x.jsonl")


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.jsonl.xz"])
def test_a_cut_compressed_file_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(PACK[name](lines(*(task(f"t{i}") for i in range(30))))[:-20])
    with pytest.raises(RawDataError, match="cannot be decompressed"):
        task_lines(tmp_path / name)
    (tmp_path / name).write_bytes(b"plain")
    with pytest.raises(RawDataError, match="cannot be decompressed"):
        task_lines(tmp_path / name)


def test_a_malformed_task_is_named_with_line_and_record(tmp_path):
    broken = {**task("task2_b"), "Instances": [{"input": 1}]}
    (tmp_path / "x.jsonl").write_bytes(lines(task("task1_a"), broken))
    with pytest.raises(RawDataError, match=r"x\.jsonl:2: Instances\[0\]: expected an object"):
        read_task_line(task_lines(tmp_path / "x.jsonl")[1])


def test_tasks_are_sources_that_show_definitions_examples_and_explanations(tmp_path):
    mmlu = "task685_mmmlu_answer_generation_clinical_knowledge"
    (tmp_path / "x.jsonl").write_bytes(lines(task("task1_a", 400), task(mmlu)))
    found = raw_sources(RawOptions(), natural_instructions=tmp_path / "x.jsonl")
    groups = {source.name: source.group for source in found}
    assert groups == {"task1_a": "held_in", mmlu: "held_out"}, "MMLU is never trained on"
    assert list(found[1].open(len).train) == []
    explained, forms = 0, set()
    for example in found[0].open(lambda prompt: True).train:
        kind, form, template = example.template.split("/")
        forms.add(form)
        assert kind == ("zs_opt" if form == "zero_shot" else "fs_opt")
        assert "Definition of task1_a." in example.prompt
        if form == "definition_examples":
            assert "shown" in example.prompt
            assert ("It says so." in example.prompt) == (int(template) % 3 == 2)
            explained += "It says so." in example.prompt
        else:
            assert "It says so." not in example.prompt
        if form == "definition_instances":
            assert example.prompt.count("Definition of task1_a.") == 1
            assert len(example.meta["problems"]) > 1
    assert explained > 5
    assert forms == {"zero_shot", "few_shot", "definition_examples", "definition_instances"}
