"""Prompt layouts, as the evaluation suite promises them, and safe filling of templates."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_moe.data.prompts import (
    DEFINITION_LAYOUTS,
    cot_prompt,
    cot_target,
    definition_prompt,
    few_shot_prompt,
    fill,
    with_options,
)


def test_few_shot_layout():
    assert few_shot_prompt([("2 + 2?", "4"), ("3 + 3?", "6")], "1 + 1?") == (
        "2 + 2?\n4\n\n3 + 3?\n6\n\n1 + 1?"
    )
    assert few_shot_prompt([], "1 + 1?") == "1 + 1?"


def test_chain_of_thought_layout():
    assert cot_prompt("1 + 1?") == "1 + 1?\nLet's think step by step."
    assert cot_target("One and one is two.", "2") == "One and one is two. So the answer is 2."
    assert cot_target("", "2") == "So the answer is 2."


def test_definition_layout():
    assert definition_prompt("Add.", "1 1", [("2 2", "4")]) == (
        "Add.\nInput: 2 2\nOutput: 4\nInput: 1 1\nOutput:"
    )
    zero_shot = {definition_prompt("Add.", "1 1", layout=i) for i in range(2 * 10)}
    assert len(zero_shot) == len(DEFINITION_LAYOUTS) == 10


def test_solved_examples_may_say_why():
    pairs = [("2 2", "4"), ("3 3", "6")]
    assert definition_prompt("Add.", "1 1", pairs, explanations=["Two and two.", ""]) == (
        "Add.\nInput: 2 2\nOutput: 4\nExplanation: Two and two.\nInput: 3 3\nOutput: 6\n"
        "Input: 1 1\nOutput:"
    )


def test_options_follow_the_prompt():
    assert with_options("Which?", ("a", "b")) == "Which?\nOptions:\n- a\n- b"
    assert with_options("Which?", None) == "Which?"


@settings(deadline=None)
@given(st.text())
def test_values_are_never_parsed(value):
    assert fill("<{a}|{b}>", {"a": value, "b": "{a}"}) == f"<{value}|{{a}}>"


def test_attribute_and_index_syntax_of_str_format_does_nothing():
    class Secret:
        key = "leaked"

    template = "{a.key} {a[0]} {a!r} {0} {}"
    assert fill(template, {"a": Secret()}) == template


def test_a_missing_field_is_named():
    with pytest.raises(ValueError, match=r"names \{b\}; given are \['a'\]"):
        fill("{b}", {"a": ""})
