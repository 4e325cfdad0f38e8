"""Prompt forms: zero-shot, few-shot, definition with examples, rationale then answer.

The wordings are this project's own. The few-shot and chain-of-thought layouts are also the ones the
evaluation suite promises, so that a tuned model has met in training every form it is asked in:

* zero-shot: the input alone;
* few-shot: ``input`` newline ``target`` for each exemplar, a blank line between blocks, then the
  input (further layouts, which training mixes in, are in `flan_moe.data.forms.few_shot`);
* chain of thought: the input, a newline and `COT_CUE`; the target ends in the answer after
  `ANSWER_CUE`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

COT_CUE = "Let's think step by step."
ANSWER_CUE = "the answer is"

# Other lines that ask for reasoning; training shows them beside the one that the suite promises.
COT_CUES: tuple[str, ...] = (
    COT_CUE,
    "Explain your reasoning, then give the answer.",
    "Think it through first.",
    "Reason first, answer last.",
    "Give the steps that lead to your answer.",
    "Work it out before you answer.",
    "What follows from what? Say so, and conclude.",
    "Start with an explanation and end with the answer.",
    "Justify your answer before you state it.",
    "Step-by-step reasoning:",
)

_FIELD = re.compile(r"\{([a-z][a-z_0-9]*)\}")

# Layouts of a task definition and one instance (Natural Instructions). Index 0 is the plainest.
DEFINITION_LAYOUTS: tuple[tuple[str, str], ...] = (
    ("{definition}", "Input: {input}\nOutput:"),
    ("Task: {definition}", "{input}\nAnswer:"),
    ("Definition: {definition}", "Given: {input}\nResult:"),
    ("Follow this instruction. {definition}", "Input: {input}\nAnswer:"),
    ("{definition}", "Q: {input}\nA:"),
    ("Instructions: {definition}", "Problem: {input}\nSolution:"),
    ("What to do: {definition}", "Text: {input}\nReply:"),
    ("You are given a task. {definition}", "[{input}]\nYour output:"),
    ("Your job is described here. {definition}", "Case: {input}\nResponse:"),
    ("Read the task and solve it. {definition}", "{input}\nSolution:"),
)

# What stands between the output of a solved example and why it is right.
EXPLANATION_LAYOUTS: tuple[str, ...] = ("\nExplanation: ", "\nReason: ", "\nThis is because: ")

# Layouts of a bare question (Flan chain-of-thought files).
QUESTION_LAYOUTS: tuple[str, ...] = (
    "{question}",
    "Question: {question}\nAnswer:",
    "Answer this question.\n{question}",
    "{question}\nWhat is the answer?",
    "Q: {question}\nA:",
    "Please answer: {question}",
    "{question}\nYour answer:",
    "Here is a problem. {question}\nSolve it.",
    "Can you solve this? {question}",
    "{question}\nReply with the answer.",
)


def fill(template: str, fields: Mapping[str, str]) -> str:
    """Put values into a template's ``{name}`` places.

    Only the template is parsed: braces inside the values stay as they are, and no attribute or
    index syntax exists, so values from untrusted files are safe.

    Raises:
        ValueError: The template names a field that is not given.
    """

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in fields:
            raise ValueError(f"template {template!r} names {{{name}}}; given are {sorted(fields)}")
        return fields[name]

    return _FIELD.sub(value, template)


def with_options(prompt: str, options: Sequence[str] | None) -> str:
    """The prompt followed by its answer options, one per line; unchanged without options."""
    if options is None:
        return prompt
    return prompt + "\nOptions:" + "".join(f"\n- {option}" for option in options)


def definition_prompt(
    definition: str,
    instance: str,
    examples: Sequence[tuple[str, str]] = (),
    *,
    layout: int = 0,
    explanations: Sequence[str] = (),
) -> str:
    """A task definition, optional solved examples, then the instance to solve.

    Args:
        definition: What is to be done.
        instance: The input to solve.
        examples: Solved (input, output) pairs, shown in order under the one definition.
        layout: Index into `DEFINITION_LAYOUTS`, taken modulo their number.
        explanations: Why the outputs are right, one for each example; empty for none.
    """
    head, body = DEFINITION_LAYOUTS[layout % len(DEFINITION_LAYOUTS)]
    blocks = [fill(head, {"definition": definition})]
    reason = EXPLANATION_LAYOUTS[layout % len(EXPLANATION_LAYOUTS)]
    for number, (shown, output) in enumerate(examples):
        why = explanations[number] if explanations else ""
        blocks.append(f"{fill(body, {'input': shown})} {output}{reason + why if why else ''}")
    blocks.append(fill(body, {"input": instance}))
    return "\n".join(blocks)


def few_shot_prompt(exemplars: Sequence[tuple[str, str]], prompt: str) -> str:
    """Solved (prompt, target) exemplars and then the prompt, separated by blank lines."""
    return "\n\n".join([*(f"{shown}\n{target}" for shown, target in exemplars), prompt])


def cot_prompt(prompt: str, cue: str = COT_CUE) -> str:
    """The prompt followed by the line that asks for reasoning."""
    return f"{prompt}\n{cue}"


def cot_target(rationale: str, answer: str) -> str:
    """Reasoning followed by the answer, in the form an evaluator can cut apart again."""
    return f"{rationale} So {ANSWER_CUE} {answer}.".lstrip()
