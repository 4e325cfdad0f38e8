"""Answers are found where they should be, and what was done is said."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flan_moe.eval import Item, Task
from flan_moe.eval.extract import PARSE_FAILURES, answer_kind, extract_answer, find_option

CUE = "the answer is"
LETTERS = ("(A)", "(B)", "(C)")


def extract(text, kind="text", mode="cot", options=()):
    return extract_answer(text, kind=kind, mode=mode, answer_cue=CUE, options=options)


@pytest.mark.parametrize(
    ("text", "answer", "how"),
    [
        ("There are 3 and 4. So the answer is 7.", "7", "after_cue"),
        ("So the answer is $1,000.00 a month.", "1000", "after_cue"),
        ("The answer is 3. No, wait. The answer is 4.", "4", "after_cue"),
        ("THE ANSWER IS: 12", "12", "after_cue"),
        ("So the answer is\n12", "12", "after_cue"),
        ("3 apples and 4 pears make 7 fruits", "7", "last_mention"),
        ("So the answer is many.", None, "no_number"),
        ("many", None, "no_number"),
        ("So the answer is", None, "empty"),
        ("", None, "empty"),
        (" \n ", None, "empty"),
        ("what the answer isn't 5", "5", "last_mention"),
    ],
)
def test_numbers_in_a_chain_of_thought(text, answer, how):
    assert extract(text, "number") == (answer, how)


@pytest.mark.parametrize(
    ("text", "answer", "how"),
    [
        ("7", "7", "first_line"),
        ("\n 7 dollars\n8", "7", "first_line"),
        ("seven", None, "no_number"),
    ],
)
def test_numbers_in_a_direct_answer(text, answer, how):
    assert extract(text, "number", "direct") == (answer, how)


@pytest.mark.parametrize(
    ("text", "answer", "how"),
    [
        ("Thinking. So the answer is blue whale.", "blue whale", "after_cue"),
        ("So the answer is blue.\n\nQ: next", "blue", "after_cue"),
        ("blue", "blue", "no_cue"),
        ("", None, "empty"),
    ],
)
def test_free_answers_in_a_chain_of_thought(text, answer, how):
    assert extract(text) == (answer, how)


@pytest.mark.parametrize(
    ("text", "answer", "how"),
    [
        ("So the answer is (B).", "(B)", "after_cue"),
        ("So the answer is (B", "(B)", "after_cue"),
        ("So the answer is B).", "(B)", "after_cue"),
        ("So the answer is B.", "(B)", "after_cue"),
        ("So the answer is (b)", "(B)", "after_cue"),
        ("(A) is wrong, so it must be (C)", "(C)", "last_mention"),
        ("So the answer is a dog.", None, "no_option"),
        ("So the answer is unknown.", None, "no_option"),
    ],
)
def test_letters(text, answer, how):
    assert extract(text, "option", options=LETTERS) == (answer, how)


@pytest.mark.parametrize(
    ("text", "options", "answer"),
    [
        ("I do not know", ("yes", "no"), None),
        ("nothing", ("yes", "no"), None),
        ("No, it is not.", ("yes", "no"), "no"),
        ("red car", ("red", "red car"), "red car"),
        ("a red bike", ("red", "red car"), "red"),
        ("Red  Car!", ("red", "red car"), "red car"),
        ("red-hot", ("red", "blue"), None),
        ("15", ("5", "15"), "15"),
        ("5.5", ("5", "6"), None),
        ("1,500", ("1", "500"), None),
        ("-5", ("5", "6"), None),
        ("it is (B) Paris", ("(A) Rome", "(B) Paris"), "(B) Paris"),
        ("(B", ("(A) Rome", "(B) Paris"), "(B) Paris"),
        ("C++", ("C++", "Java"), "C++"),
        ("{ [", ("{ [", "( ["), "{ ["),
    ],
)
def test_options_are_named_by_whole_words(text, options, answer):
    assert find_option(text, options) == answer
    assert find_option(text, tuple(reversed(options))) == answer


WORD = st.text("abcdefghij", min_size=1, max_size=6)


@given(st.text(), st.from_regex(r"[a-z]+( [a-z]+){0,2}", fullmatch=True))
def test_whatever_precedes_the_last_cue_does_not_matter(rationale, answer):
    if CUE in answer:
        return
    text = f"{rationale} So {CUE} {answer}."
    assert extract(text) == (answer, "after_cue")


@given(st.text(), st.integers(-(10**6), 10**6))
def test_a_number_after_the_cue_is_found(rationale, number):
    assert extract(f"{rationale} So {CUE} {number:,}.", "number") == (str(number), "after_cue")


@given(WORD, WORD, WORD)
def test_an_option_inside_a_longer_word_is_not_named(before, option, after):
    assert find_option(before + option + after, (option,)) is None
    assert find_option(f"{before} {option} {after}", (option,)) == option


@given(st.text(), st.sampled_from(["option", "number", "text"]), st.sampled_from(["direct", "cot"]))
def test_any_output_is_judged(text, kind, mode):
    found = extract(text, kind, mode, ("yes", "no"))
    if found.answer is None:
        assert found.how in PARSE_FAILURES
    if kind == "option":
        assert found.answer in ("yes", "no", None)


def task_of(targets, options=None):
    return Task(
        name="t",
        mixture="m",
        group="held_in",
        kind="generate",
        cot=False,
        cot_cue="",
        answer_cue="",
        chance=0.0,
        items=tuple(
            Item(id=str(i), input="?", targets=(target,), options=options)
            for i, target in enumerate(targets)
        ),
    )


def test_the_kind_of_answers_is_a_property_of_the_task():
    assert answer_kind(task_of(["1", "2.5", "$3"])) == "number"
    assert answer_kind(task_of(["1", "two"])) == "text"
    assert answer_kind(task_of(["1", "2"], options=("1", "2"))) == "option"
