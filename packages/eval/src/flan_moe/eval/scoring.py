"""Comparing an answer with the target, and options with each other."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

from flan_moe.eval.extract import AnswerKind
from flan_moe.eval.numbers import as_number
from flan_moe.eval.requests import Loglikelihood

_QUOTES = "\"'`\u2018\u2019\u201c\u201d"


class Choices(NamedTuple):
    """Indices of the options a model prefers.

    Attributes:
        total: By log-probability of the whole option.
        per_token: By log-probability divided by the number of tokens, which does not favour short
            options.
    """

    total: int
    per_token: int


def normalize_text(text: str) -> str:
    """The form in which free answers are compared.

    Unicode NFKC, case folded, runs of blanks as one space, no quotation marks around the whole and
    no full stop at its end. Nothing else: articles, commas and brackets count.
    """
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    previous = None
    while text != previous:
        previous = text
        text = text.removesuffix(".").rstrip()
        if len(text) > 1 and text[0] in _QUOTES and text[-1] in _QUOTES:
            text = text[1:-1].strip()
    return text


def exact_match(answer: str | None, targets: Iterable[str], *, kind: AnswerKind) -> bool:
    """Whether an extracted answer is one of the right ones, the maximum over references.

    Options are compared as they are, numbers by value ("18.0" is "18"), texts in normalised form.
    No answer is a wrong answer.
    """
    if answer is None:
        return False
    if kind == "option":
        return answer in targets
    if kind == "number":
        value = as_number(answer)
        return value is not None and value in map(as_number, targets)
    return normalize_text(answer) in map(normalize_text, targets)


def choose(scores: Loglikelihood) -> Choices:
    """The options with the highest log-probability; of equal ones the first."""
    totals = scores.log_probabilities
    means = [
        total / max(count, 1) for total, count in zip(totals, scores.token_counts, strict=True)
    ]
    return Choices(
        total=max(range(len(totals)), key=totals.__getitem__),
        per_token=max(range(len(means)), key=means.__getitem__),
    )
