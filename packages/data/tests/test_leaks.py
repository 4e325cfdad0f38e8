"""Planted leaks are found, however they are dressed, and disjoint text raises no alarm."""

import json
import random
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flan_moe.data import cli
from flan_moe.data.leaks import (
    EvaluationIndex,
    EvaluationItem,
    LeakReport,
    TrainingText,
    read_evaluation,
    scan,
)
from flan_moe.data.readers import RawDataError


def made_up_words(seed, count):
    rng = random.Random(seed)
    return ["".join(rng.choices(string.ascii_lowercase, k=6)) for _ in range(count)]


def item(*parts, name="set", number=0):
    return EvaluationItem(set=name, id=str(number), parts=parts)


def found(texts, items, **options):
    """(text, item, exact) of every leak."""
    index = EvaluationIndex.build(items, **options)
    training = [TrainingText(task="t", sample=i, parts=(text,)) for i, text in enumerate(texts)]
    return [(leak.sample, leak.item, leak.exact) for leak in scan(training, index)]


QUESTIONS = [item(" ".join(made_up_words(f"q{i}", 8 + i % 30)), number=i) for i in range(300)]


def dressed(text, rng):
    """The text in other case and punctuation, inside other words."""
    words = [rng.choice([word, word.upper(), word.title()]) for word in text.split()]
    text = "".join(word + rng.choice([" ", ", ", "\n", " - ", "? "]) for word in words)
    around = made_up_words(rng.random(), 60)
    return f"{' '.join(around[:30])}\n\nQ: {text}\nA: {' '.join(around[30:])}"


def test_every_planted_question_is_found_and_nothing_else():
    rng = random.Random(0)
    planted = rng.sample(range(300), 90)
    texts = [dressed(QUESTIONS[i].parts[0], rng) for i in planted]
    clean = [" ".join(made_up_words(f"clean{i}", 120)) for i in range(500)]
    assert found(clean + texts, QUESTIONS) == [
        (500 + row, number, True) for row, number in enumerate(planted)
    ]


def test_every_planted_run_of_13_words_is_found_as_part_of_its_question():
    rng = random.Random(1)
    long = [i for i, each in enumerate(QUESTIONS) if len(each.parts[0].split()) > 13]
    texts = []
    for number in long:
        words = QUESTIONS[number].parts[0].split()
        start = rng.randrange(len(words) - 12)
        texts.append(dressed(" ".join(words[start : start + 13]), rng))
    assert found(texts, QUESTIONS) == [(row, number, False) for row, number in enumerate(long)]


def test_runs_of_12_words_are_not_leaks():
    long = [each for each in QUESTIONS if len(each.parts[0].split()) > 13]
    assert found([" ".join(each.parts[0].split()[:12]) for each in long], long) == []


@given(st.data())
def test_a_question_is_found_wherever_it_stands(data):
    word = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8)
    question = " ".join(data.draw(st.lists(word, min_size=8, max_size=40)))
    before, after = data.draw(st.text(max_size=50)), data.draw(st.text(max_size=50))
    assert found([f"{before}\n{question}\n{after}"], [item(question)]) == [(0, 0, True)]


def test_a_run_over_the_end_of_a_text_is_no_run():
    words = made_up_words("w", 13)
    training = TrainingText(task="t", sample=0, parts=(" ".join(words[:6]), " ".join(words[6:])))
    index = EvaluationIndex.build([item(" ".join(words))])
    assert list(scan([training], index)) == []


def test_a_target_leaks_as_a_prompt_does():
    words = " ".join(made_up_words("w", 13))
    training = TrainingText(task="t", sample=7, parts=("Write a question.", words))
    (leak,) = scan([training], EvaluationIndex.build([item(words)]))
    assert (leak.sample, leak.exact) == (7, True)


def test_short_questions_are_found_as_lines_of_their_own_only():
    items = [item("Is water wet?")]
    texts = ["Answer this.\nis water WET\nyes", "He asks: is water wet or not?"]
    assert found(texts, items) == [(0, 0, True)]


def test_something_may_stand_between_the_parts_of_a_question():
    story = "Ann has seven red balls and gives three of them to her brother Tom"
    items = [item(story, "How many are left?"), item("Bob has one ball.", "How many are left?")]
    texts = [
        f"Context: {story}. Question: How many are left?",
        f"{story} and goes home.",
        "How many are left?",
    ]
    # The story alone is a part; what is asked about it, and by others, is nothing alone.
    assert found(texts, items) == [(0, 0, True), (1, 0, False)]


def test_wording_that_many_questions_share_is_no_leak():
    frame = "Which of the following sentences is the one that all of us would call"
    items = [item(f"{frame} {' '.join(made_up_words(i, 6))}", number=i) for i in range(20)]
    assert found([frame], items) == []
    assert found([frame], items[:9]) == [(0, i, False) for i in range(9)]
    assert found([items[3].parts[0]], items) == [(0, 3, True)]


def test_a_question_of_nothing_but_wording_must_be_there_entirely():
    words = made_up_words("w", 14)
    items = [item(" ".join([*words, *made_up_words(i, 3)]), number=i) for i in range(20)]
    items.append(item(" ".join(words), number=20))
    assert found([" ".join(words[:13])], items) == []
    assert (0, 20, True) in found([" ".join(words)], items)


def test_the_report_counts_by_set_and_task():
    words = made_up_words("w", 60)
    items = [
        item(" ".join(words[:15]), name="a", number=0),
        item(" ".join(words[20:40]), name="a", number=1),
        item("...", name="b", number=0),
    ]
    index = EvaluationIndex.build(items)
    texts = [
        TrainingText(task="t1", sample=0, parts=(" ".join(words[:35]),)),
        TrainingText(task="t1", sample=1, parts=(" ".join(words[:15]),)),
        TrainingText(task="t2", sample=2, parts=(" ".join(words[22:38]),)),
    ]
    report = LeakReport.of(scan(texts, index), index, samples=3)
    a, b = report.sets
    assert (a.items, a.exact, a.partial) == (2, 1, 1)
    assert a.tasks == {
        "t1": {"samples": 2, "exact": 1, "partial": 1},
        "t2": {"samples": 1, "exact": 0, "partial": 1},
    }
    assert (b.items, b.exact, b.unusable) == (1, 0, 1)
    assert report.leaks[0] == {
        "set": "a", "id": "0", "task": "t1", "sample": 0, "found": 1.0, "exact": True
    }  # fmt: skip
    assert "| a | 2 | 1 | 1 | 0 |" in report.table()


def test_the_command_finds_what_the_data_show(mini, tmp_path, capsys):
    # The builder has removed shared questions from the suite; planted ones come back.
    assert cli.main(["show", str(mini), "--task", "reading_qa", "--limit", "1"]) == 0
    prompt = capsys.readouterr().out.split("-\n")[2].split("\n=>")[0]
    leaked = tmp_path / "leaked.jsonl"
    rows = [{"question": prompt}, {"question": " ".join(made_up_words("x", 20))}]
    leaked.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "report"
    command = ["leaks", str(mini), "--against", f"jsonl={leaked}", "--out", str(out)]
    assert cli.main(command) == 0
    assert "| jsonl | 2 | 1 | 0 |" in capsys.readouterr().out
    record = json.loads((out / "leaks.json").read_text())
    assert record["sets"][0]["tasks"]["reading_qa"]["exact"] == 1
    (line, *_) = (out / "leaks.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "leaked/0"
    assert cli.main(command) == 1  # does not write over a report
    assert "report" in capsys.readouterr().err


FILES = {
    "mmlu": ("x_test.csv", 'What is "it"?,a,b,c,d,A\n"Two\nlines",a,b,c,d,B\n', 2),
    "bbh": ("x.json", json.dumps({"examples": [{"input": "Do?\nOptions:\n- yes"}]}), 1),
    "gsm8k": ("test.jsonl", '{"question": "How many?", "answer": "#### 1"}\n', 1),
    "svamp": ("SVAMP.json", json.dumps([{"Body": "One.", "Question": "How many?"}]), 1),
    "asdiv": (
        "ASDiv.xml",
        "<M><ProblemSet><Problem><Body>One.</Body><Question>How many?</Question></Problem>"
        "</ProblemSet></M>",
        1,
    ),
    "strategyqa": ("dev.json", json.dumps([{"question": "Can it?"}]), 1),
    "arc": (
        "test.json",
        json.dumps(
            [
                {
                    "instruction": "Please choose the correct answer to the question: Why?\n\n"
                    "Answer1: a Answer2: b\n\nAnswer format: answer1/answer2"
                }
            ]
        ),
        1,
    ),
    "boolq": ("dev.jsonl", '{"question": "is it", "passage": "It is."}\n', 1),
    "jsonl": ("x.jsonl", '{"input": "Is it?"}\n{"text": "It is."}\n', 2),
}
PARTS = {
    "mmlu": ('What is "it"?',),
    "bbh": ("Do?",),
    "svamp": ("One.", "How many?"),
    "asdiv": ("One.", "How many?"),
    "arc": ("Why?",),
    "boolq": ("is it",),
}


@pytest.mark.parametrize("name", FILES)
def test_published_formats_are_read(name, tmp_path):
    file, text, count = FILES[name]
    (tmp_path / file).write_text(text)
    items = read_evaluation(name, tmp_path)
    assert len(items) == count
    assert items == read_evaluation(name, tmp_path / file)
    assert items[0].parts == PARTS.get(name, items[0].parts)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", b"\xff\xfe{", b"[1, 2]", b'{"a": ', b"[" * 100_000])
def test_damaged_files_are_refused_by_name(name, content, tmp_path):
    file = tmp_path / FILES[name][0]
    file.write_bytes(content)
    with pytest.raises(RawDataError, match=file.name):
        read_evaluation(name, file)


def test_a_suite_may_not_lead_out_of_its_folder(tmp_path):
    (tmp_path / "suite.json").write_text(json.dumps({"tasks": [{"file": "../x.jsonl"}]}))
    with pytest.raises(RawDataError, match="leaves the folder"):
        read_evaluation("suite", tmp_path)


def test_unknown_formats_and_missing_files_are_refused(tmp_path, mini, capsys):
    with pytest.raises(ValueError, match="no evaluation format 'mlu'"):
        read_evaluation("mlu", tmp_path)
    with pytest.raises(RawDataError, match="expected a file or folder of mmlu"):
        read_evaluation("mmlu", tmp_path)
    assert cli.main(["leaks", str(mini), "--against", "mmlu"]) == 1
    assert "expected FORMAT=PATH" in capsys.readouterr().err
