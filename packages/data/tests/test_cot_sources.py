"""Input inversion, and e-SNLI and QED in place of the two files that Flan made of them."""

import json

import pytest

from flan_moe.data.readers import RawDataError
from flan_moe.data.readers.cot_stand_ins import cot_stand_ins, read_cot_stand_in
from flan_moe.data.sources.raw import RawOptions, raw_sources


def always(prompt):
    return True


@pytest.fixture
def sums(tmp_path):
    rows = [f"What is {i}+1 ?\t<{i + 1}>\tAdding {i} and 1.\n" for i in range(200)]
    (tmp_path / "sums_train.tsv").write_text("".join(rows))
    return tmp_path / "sums_train.tsv"


def sources(path, **options):
    found = raw_sources(
        RawOptions(evaluation=20, validation=10), cot=path, inversion=True, **options
    )
    return {source.name: source for source in found}


def test_an_inverted_task_asks_for_each_part_of_a_problem(sums):
    content = sources(sums)["cot_input_inversion_sums"].open(always)
    kinds = {"question": 0, "reasoning": 0, "problem": 0}
    examples = list(content.train)
    assert len(examples) == 170
    for example in examples:
        number = int(example.meta["problems"][0].split()[2].split("+")[0])
        question, answer, why = (
            f"What is {number}+1 ?",
            f"<{number + 1}>",
            f"Adding {number} and 1.",
        )
        kind = {
            question: "question",
            why: "reasoning",
            f"Question: {question}\nAnswer: {answer}": "problem",
        }[example.target]
        kinds[kind] += 1
        asked = example.meta["shown"][0]
        assert (question in asked) == (kind == "reasoning")
        assert (why in asked) == (kind != "reasoning")
        assert (answer in asked) == (kind != "problem")
        assert example.prompt.count(why) == (kind != "reasoning")
        assert example.template.split("/")[0] in ("zs_opt", "fs_opt")
    assert min(kinds.values()) > 30


def test_an_inverted_task_trains_on_the_problems_of_its_task_and_evaluates_on_none(sums):
    found = sources(sums)
    plain, inverted = (source.open(always) for source in found.values())
    assert [source.cot for source in found.values()] == [True, False]

    def problems(examples):
        return {example.meta["problems"][0] for example in examples}

    asked = {item.problem for item in plain.items}
    assert len(asked) == 20
    assert inverted.items == inverted.exemplars == ()
    train = list(inverted.train)
    assert problems(train) == problems(plain.train)
    assert problems(inverted.validation) == problems(plain.validation)
    shown = {problem for example in train for problem in example.meta["problems"]}
    assert not shown & asked
    for example in train:
        assert len(set(example.meta["problems"])) == len(example.meta["problems"])


def test_a_held_out_task_has_no_inverted_twin(sums):
    assert set(sources(sums, held_out=["cot_sums"])) == {"cot_sums"}


def write_esnli(path, split="dev", explanations=("because", "", "no , it 's not .")):
    path.mkdir(exist_ok=True)
    count = len(explanations)
    columns = {
        "s1": [f"A man {i} sleeps . " for i in range(count)],
        "s2": ["He is n't awake ."] * count,
        "labels": ["entailment", "neutral", "contradiction"][:count],
        "preproc1_expl_1": explanations,
    }
    for name, lines in columns.items():
        end = "" if name.startswith("preproc") else "\n"  # as published
        (path / f"{name}.{split}").write_text("\n".join(lines) + end)
    return path


def test_esnli_line_by_line(tmp_path):
    (found,) = cot_stand_ins(write_esnli(tmp_path / "esnli").parent)
    task = read_cot_stand_in(found)
    assert (task.name, task.read, task.dropped) == ("cot_esnli", 3, {"no rationale": 1})
    first, third = task.records
    assert dict(first.fields) == {"premise": "A man 0 sleeps.", "hypothesis": "He isn't awake."}
    assert (first.targets, first.rationale) == (("yes",), "Because.")
    assert (third.targets, third.rationale) == (("no",), "No, it's not.")
    assert third.options == ("yes", "it is not possible to tell", "no")
    write_esnli(tmp_path / "esnli", split="train", explanations=("one .",))
    assert read_cot_stand_in(cot_stand_ins(tmp_path)[0]).read == 1, "training files come first"


def test_damaged_esnli_files_are_named(tmp_path):
    path = write_esnli(tmp_path / "esnli")
    (path / "labels.dev").write_text("entailment\nmaybe\nneutral\n")
    with pytest.raises(RawDataError, match=r"labels\.dev:2: 'maybe'; expected one of"):
        read_cot_stand_in(cot_stand_ins(tmp_path)[0])
    (path / "labels.dev").write_text("entailment\n")
    with pytest.raises(RawDataError, match=r"3 in s1\.dev, 3 in s2\.dev, 1 in labels\.dev"):
        read_cot_stand_in(cot_stand_ins(tmp_path)[0])
    with pytest.raises(RawDataError, match=r"expected files of e-SNLI"):
        cot_stand_ins(tmp_path / "nowhere")


def span(text):
    return {"start": 0, "end": len(text), "string": text}


QED = {
    "question_text": "who got the first nobel prize",
    "paragraph_text": "The first Nobel Prize went to Röntgen , in 1901 . It was big .",
    "annotation": {
        "explanation_type": "single_sentence",
        "answer": [{"paragraph_reference": span("Röntgen")}],
        "selected_sentence": span("The first Nobel Prize went to Röntgen , in 1901 . "),
        "referential_equalities": [
            {
                "question_reference": span("the first nobel prize"),
                "sentence_reference": span("The first Nobel Prize"),
            },
            {"question_reference": span("who"), "sentence_reference": span("Röntgen")},
        ],
    },
}


def test_qed_explains_by_the_sentence_and_what_it_refers_to(tmp_path):
    unexplained = {**QED, "annotation": {"explanation_type": "none"}}
    file = tmp_path / "qed-dev.jsonlines"
    file.write_text("".join(json.dumps(row) + "\n" for row in (QED, unexplained)))
    task = read_cot_stand_in(cot_stand_ins(tmp_path)[0])
    assert (task.name, task.read, task.dropped) == ("cot_qed", 2, {"no rationale": 1})
    (record,) = task.records
    assert record.input.endswith("It was big.\nwho got the first nobel prize?")
    assert record.targets == ("Röntgen",)
    assert record.rationale == (
        "The passage says: The first Nobel Prize went to Röntgen, in 1901. "
        '"who" in the question is "Röntgen" in the passage.'
    )
    file.write_text(json.dumps({**QED, "annotation": {**QED["annotation"], "answer": 1}}) + "\n")
    with pytest.raises(RawDataError, match=r"qed-dev\.jsonlines:1: annotation: answer: expected"):
        read_cot_stand_in(cot_stand_ins(tmp_path)[0])


def test_they_are_chain_of_thought_sources(tmp_path):
    rows = [
        {**QED, "question_text": f"who got prize {i}", "paragraph_text": f"{i} went to Röntgen ."}
        for i in range(60)
    ]
    (tmp_path / "qed-dev.jsonlines").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = raw_sources(RawOptions(), cot_stand_ins=tmp_path, inversion=True)
    assert [source.name for source in found] == ["cot_qed", "cot_input_inversion_qed"]
    content = found[0].open(always)
    reasoned = [e for e in content.train if "So the answer is Röntgen." in e.target]
    assert len(reasoned) > 10
    assert all("The passage says:" not in e.meta["shown"][0] for e in reasoned)
