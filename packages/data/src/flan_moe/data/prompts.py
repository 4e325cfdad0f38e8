"""Prompt forms: zero-shot, few-shot, definition with examples, rationale then answer.

The wordings are this project's own. The few-shot and chain-of-thought layouts are also the ones the
evaluation suite promises, so that a tuned model has met in training every form it is asked in:

* zero-shot: the input alone;
* few-shot: ``input`` newline ``target`` for each exemplar, a blank line between blocks, then the
  input;
* chain of thought: the input, a newline and `COT_CUE`; the target ends in the answer after
  `ANSWER_CUE`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

COT_CUE = "Let's think step by step."
ANSWER_CUE = "the answer is"

_FIELD = re.compile(r"\{([a-z][a-z_0-9]*)\}")

# Layouts of a task definition and one instance (Natural Instructions). Index 0 is the plainest.
DEFINITION_LAYOUTS: tuple[tuple[str, str], ...] = (
    ("{definition}", "Input: {input}\nOutput:"),
    ("Task: {definition}", "{input}\nAnswer:"),
    ("Definition: {definition}", "Given: {input}\nResult:"),
    ("Follow this instruction. {definition}", "Input: {input}\nAnswer:"),
)

# Layouts of a bare question (Flan chain-of-thought files).
QUESTION_LAYOUTS: tuple[str, ...] = (
    "{question}",
    "Question: {question}\nAnswer:",
    "Answer this question.\n{question}",
    "{question}\nWhat is the answer?",
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
) -> str:
    """A task definition, optional solved examples, then the instance to solve.

    Args:
        definition: What is to be done.
        instance: The input to solve.
        examples: Solved (input, output) pairs, shown in order under the one definition.
        layout: Index into `DEFINITION_LAYOUTS`, taken modulo their number.
    """
    head, body = DEFINITION_LAYOUTS[layout % len(DEFINITION_LAYOUTS)]
    blocks = [fill(head, {"definition": definition})]
    blocks += [f"{fill(body, {'input': shown})} {output}" for shown, output in examples]
    blocks.append(fill(body, {"input": instance}))
    return "\n".join(blocks)


def few_shot_prompt(exemplars: Sequence[tuple[str, str]], prompt: str) -> str:
    """Solved (prompt, target) exemplars and then the prompt, separated by blank lines."""
    return "\n\n".join([*(f"{shown}\n{target}" for shown, target in exemplars), prompt])


def cot_prompt(prompt: str) -> str:
    """The prompt followed by the line that asks for reasoning."""
    return f"{prompt}\n{COT_CUE}"


def cot_target(rationale: str, answer: str) -> str:
    """Reasoning followed by the answer, in the form an evaluator can cut apart again."""
    return f"{rationale} So {ANSWER_CUE} {answer}.".lstrip()
