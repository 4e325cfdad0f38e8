"""Sentence/label JSON as O-LoRA writes it: a list of ``{"sentence", "label"}``.

The parts of a problem stand behind small prefixes in the sentence; a pattern per kind of sentence
takes them apart (github.com/cmnfriend/O-LoRA, ``CL_Benchmark/``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flan_moe.data.readers.json_rows import json_rows, text_of
from flan_moe.data.readers.record import RawDataError, Record

FOLLOWS: Mapping[str, str] = {
    "entailment": "yes",
    "neutral": "it is not possible to tell",
    "contradiction": "no",
}
TRUE_FALSE: Mapping[str, str] = {"True": "yes", "False": "no"}
GOOD_BAD: Mapping[str, str] = {"Good": "positive", "Bad": "negative"}
NEWS: Mapping[str, str] = {
    "World": "World",
    "Sports": "Sports",
    "Business": "Business",
    "Science or Technology": "Science or Technology",
}


@dataclass(frozen=True, kw_only=True)
class SentenceForm:
    """How the sentences of a set are made.

    Attributes:
        pattern: With a named group for each field of the problem.
        labels: Label in the file, then the answer, in the order in which options are listed; None:
            the groups ``a`` and ``b`` are the options, and the labels A and B name them.
        bare: Fields that make the bare problem; without the others, problems that are about the
            same give each other away.
        asks: A field that gets the question mark it lacks in the file.
        joined: Groups that make the field ``text`` together, a line each.
    """

    pattern: re.Pattern[str]
    labels: Mapping[str, str] | None
    bare: tuple[str, ...]
    asks: str | None = None
    joined: tuple[str, ...] = ()

    def fields(self, groups: Mapping[str, str]) -> dict[str, str]:
        """The fields of a problem, from the groups of its sentence."""
        fields = {name: value.strip() for name, value in groups.items()}
        if self.asks is not None:
            fields[self.asks] = fields[self.asks].removesuffix("?").rstrip() + "?"
        if self.joined:
            fields["text"] = "\n".join(fields.pop(name) for name in self.joined)
        return fields


def _form(pattern: str, labels: Mapping[str, str] | None, *bare: str, **more: Any) -> SentenceForm:
    return SentenceForm(pattern=re.compile(pattern, re.DOTALL), labels=labels, bare=bare, **more)


_NLI = r"sentence 1:\s*(?P<premise>.*)\nsentence 2:\s*(?P<hypothesis>.*)"
NLI = _form(_NLI, FOLLOWS, "premise", "hypothesis")
NLI_TWO = _form(_NLI, {"entailment": "yes", "contradiction": "no"}, "premise", "hypothesis")
QQP = _form(
    r"first sentence:\s*(?P<first>.*)\nsecond sentence:\s*(?P<second>.*)",
    TRUE_FALSE,
    "first",
    "second",
)
SENTIMENT = _form(r"(?:Text: )?(?P<text>.*)", GOOD_BAD, "text")
TOPIC = _form(r"Title: (?P<title>.*?)\nText: (?P<body>.*)", NEWS, "text", joined=("title", "body"))
WIC = _form(
    r"word: (?P<word>[^\n]*)\n(?P<first>[^\n]*)\n(?P<second>.*)",
    TRUE_FALSE,
    "word",
    "first",
    "second",
)
MULTIRC = _form(
    r"paragraph:\s*(?P<passage>.*)\nquestion:\s*(?P<question>.*)"
    r"\ncandidate answer:\s*(?P<candidate>.*)",
    TRUE_FALSE,
    "passage",
    "question",
)
BOOLQ = _form(
    r"question:\s*(?P<question>.*?)\npassage:\s*(?P<passage>.*)",
    TRUE_FALSE,
    "passage",
    "question",
    asks="question",
)
COPA = _form(
    r'Which sentence is the (?P<asked>cause|effect) of "(?P<premise>.*)"\? Choose one between A '
    r"and B\.\nA:\s*(?P<a>.*)\nB:\s*(?P<b>.*)",
    None,
    "premise",
    "asked",
)


def read_sentence_label(file: Path, form: SentenceForm) -> Iterator[Record]:
    """The rows of a file.

    Raises:
        RawDataError: A row is not of this form, or has a label of its own; names it.
    """
    for where, row in json_rows(file):
        found = form.pattern.fullmatch(text_of(row, "sentence", where))
        if found is None:
            raise RawDataError(
                f"{where}: sentence: expected {form.pattern.pattern!r}; got "
                f"{row['sentence'][:80]!r}"
            )
        fields = form.fields(found.groupdict())
        answers = form.labels or {"A": fields.pop("a"), "B": fields.pop("b")}
        label = text_of(row, "label", where)
        if label not in answers:
            raise RawDataError(f"{where}: label is {label!r}; expected one of {sorted(answers)}")
        yield Record(
            input="\n".join(fields[name] for name in form.bare),
            targets=(answers[label],),
            fields=tuple(fields.items()),
            options=tuple(answers.values()),
        )
