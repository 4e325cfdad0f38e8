"""From a model's text to its answer: pure functions that also say how they found it.

A direct answer is the first line. In a chain of thought the answer stands after the last answer
cue ("the answer is"); without a cue the last number, or the last option named, is taken. Which of
these happened is returned with the answer, so that a low score can be told from an unreadable one.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from flan_moe.eval.numbers import as_number, find_numbers, number_text
from flan_moe.eval.suite import Mode, Task

How = Literal[
    "first_line",  # direct: the first line as it is, or the number or option in it
    "after_cue",  # chain of thought: what follows the last answer cue
    "last_mention",  # chain of thought without cue: the last number or option in the text
    "no_cue",  # chain of thought without cue, free answer: the whole text, as FLAN scores it
    "no_number",  # a number was expected and there is none
    "no_option",  # an option was expected and none is named
    "empty",  # nothing was generated
]
PARSE_FAILURES: frozenset[How] = frozenset({"no_cue", "no_number", "no_option", "empty"})

AnswerKind = Literal["option", "number", "text"]


class Extraction(NamedTuple):
    """An answer and how it was found; ``answer`` is None where there is none to compare."""

    answer: str | None
    how: How


def answer_kind(task: Task) -> AnswerKind:
    """What answers of a task look like, decided once from the whole task and never per item."""
    if all(item.options for item in task.items):
        return "option"
    numeric = all(as_number(target) is not None for item in task.items for target in item.targets)
    return "number" if numeric else "text"


def extract_answer(
    text: str, *, kind: AnswerKind, mode: Mode, answer_cue: str, options: tuple[str, ...] = ()
) -> Extraction:
    """Find the answer in a model's output.

    Args:
        text: What the model wrote.
        kind: "option", "number" or "text".
        mode: "direct" or "cot".
        answer_cue: Words that announce the answer in a chain of thought; case does not matter.
        options: Candidate answers, for the kind "option".
    """
    if not text.strip():
        return Extraction(None, "empty")
    if mode == "direct":
        return _within(first_line(text), "first_line", kind, options, last=False)
    tail = after_last_cue(text, answer_cue)
    if tail is None and kind == "text":
        return Extraction(strip_full_stop(text), "no_cue")
    if tail is None:
        return _within(text, "last_mention", kind, options, last=True)
    if not tail:
        return Extraction(None, "empty")
    return _within(tail, "after_cue", kind, options, last=False)


def _within(
    text: str, how: How, kind: AnswerKind, options: tuple[str, ...], *, last: bool
) -> Extraction:
    if kind == "text":
        return Extraction(strip_full_stop(text), how)
    if kind == "number":
        numbers = find_numbers(text)
        if not numbers:
            return Extraction(None, "no_number")
        return Extraction(number_text(numbers[-1 if last else 0]), how)
    option = find_option(text, options, last=last)
    return Extraction(option, how if option is not None else "no_option")


def first_line(text: str) -> str:
    """The first line that is not blank, without outer blanks."""
    return next((line.strip() for line in text.split("\n") if line.strip()), "")


def after_last_cue(text: str, cue: str) -> str | None:
    """What follows the last ``cue`` on its line, or on the next; None when there is no cue.

    A colon after the cue is not part of the answer ("the answer is: 4").
    """
    found = list(re.finditer(_as_words(cue), text, re.IGNORECASE))
    if not found:
        return None
    return first_line(text[found[-1].end() :].lstrip(" \t:"))


def strip_full_stop(text: str) -> str:
    """Without outer blanks and without one final full stop."""
    text = text.strip()
    return text.removesuffix(".").rstrip() if not text.endswith("..") else text


def find_option(text: str, options: tuple[str, ...], *, last: bool = False) -> str | None:
    """The option that ``text`` names.

    An option is named where it stands as whole words, in any case; "no" is not in "not". Where one
    option is part of another ("red", "red car") the longer one counts. A labelled option, "(B)" or
    "(B) Paris", is also named by "(B", "B)" or, alone, "B".

    Args:
        text: The text to search.
        options: Candidates.
        last: Take the last one named instead of the first.
    """
    mentions = [
        (match.start(), match.end(), option)
        for option in options
        for pattern in _option_patterns(option)
        for match in re.finditer(pattern, text, re.IGNORECASE)
    ]
    alone = strip_full_stop(text)
    for option in options:
        label = _label(option)
        if label is not None and alone.casefold() == label.casefold():
            return option
    mentions = [
        (start, end, option)
        for start, end, option in mentions
        if not any(s <= start and end <= e and e - s > end - start for s, e, _ in mentions)
    ]
    if not mentions:
        return None
    return max(mentions)[2] if last else min(mentions)[2]


def _option_patterns(option: str) -> list[str]:
    patterns = [_as_words(option)]
    label = _label(option)
    if label is not None:
        patterns += [rf"\({label}(?!\w)", rf"(?<!\w){label}\)"]
    return patterns


def _as_words(phrase: str) -> str:
    """A pattern for ``phrase`` where it is not part of a longer word or number."""
    pattern = r"\s+".join(re.escape(word) for word in phrase.split())
    if phrase[0].isalnum():
        pattern = r"(?<!\w)(?<!\w-)(?<!\d[.,])" + pattern
    if phrase[0].isdigit():
        pattern = r"(?<![-\u2212])" + pattern
    if phrase[-1].isalnum():
        pattern += r"(?!\w)(?!-\w)(?![.,]\d)"
    return pattern


def _label(option: str) -> str | None:
    match = re.match(r"\((\w)\)(?:\s|$)", option)
    return match[1] if match else None
