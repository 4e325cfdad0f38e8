"""Prompts are laid out as the suite's format says."""

from dataclasses import replace

import pytest

from flan_moe.eval import Item, Task
from flan_moe.eval.prompts import build_prompt, fit_prompt

TASK = Task(
    name="sums",
    mixture="cot",
    group="held_out",
    kind="generate",
    cot=True,
    cot_cue="Let's think step by step.",
    answer_cue="the answer is",
    chance=0.0,
    items=(Item(id="q", input="What is 1 + 1?", targets=("2",)),),
    exemplars=(
        Item(id="a", input="What is 2 + 2?", targets=("4",), rationale="2 and 2 make 4."),
        Item(id="b", input="What is 3 + 2?", targets=("5",), rationale="3 and 2 make 5."),
    ),
)
ITEM = TASK.items[0]


def test_zero_shot_direct_is_the_input():
    assert build_prompt(TASK, ITEM, shots=0, mode="direct") == "What is 1 + 1?"


def test_few_shot_direct():
    assert build_prompt(TASK, ITEM, shots=2, mode="direct") == (
        "What is 2 + 2?\n4\n\nWhat is 3 + 2?\n5\n\nWhat is 1 + 1?"
    )


def test_zero_shot_chain_of_thought():
    assert build_prompt(TASK, ITEM, shots=0, mode="cot") == (
        "What is 1 + 1?\nLet's think step by step."
    )


def test_few_shot_chain_of_thought():
    assert build_prompt(TASK, ITEM, shots=1, mode="cot") == (
        "What is 2 + 2?\nLet's think step by step.\n2 and 2 make 4. So the answer is 4.\n\n"
        "What is 1 + 1?\nLet's think step by step."
    )


def test_exemplars_that_do_not_fit_are_dropped_from_the_end():
    limit = len(build_prompt(TASK, ITEM, shots=1, mode="cot"))
    prompt = fit_prompt(TASK, ITEM, shots=2, mode="cot", excess=lambda text: len(text) - limit)
    assert prompt.text == build_prompt(TASK, ITEM, shots=1, mode="cot")
    assert (prompt.exemplars, prompt.excess_tokens) == (1, 0)


def test_a_question_that_does_not_fit_alone_says_by_how_much():
    prompt = fit_prompt(TASK, ITEM, shots=2, mode="direct", excess=lambda text: len(text) - 10)
    assert (prompt.text, prompt.exemplars, prompt.excess_tokens) == ("What is 1 + 1?", 0, 4)


def test_impossible_prompts_are_refused():
    with pytest.raises(ValueError, match="3 shots asked for; it has 2 exemplars"):
        build_prompt(TASK, ITEM, shots=3, mode="direct")
    with pytest.raises(ValueError, match="mode 'cot'"):
        build_prompt(replace(TASK, cot=False), ITEM, shots=0, mode="cot")
    bare = replace(TASK, exemplars=(Item(id="a", input="?", targets=("4",)),))
    with pytest.raises(ValueError, match="item 'a': no rationale"):
        build_prompt(bare, ITEM, shots=1, mode="cot")
