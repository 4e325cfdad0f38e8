"""BoolQ's own jsonl: ``{"question", "title", "answer": true, "passage"}``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from flan_moe.data.readers.json_rows import json_rows, text_of
from flan_moe.data.readers.record import RawDataError, Record

YES_NO = ("yes", "no")


def read_boolq(file: Path) -> Iterator[Record]:
    """The rows of a file.

    Raises:
        RawDataError: A row is not of this form; names it.
    """
    for where, row in json_rows(file):
        if not isinstance(row.get("answer"), bool):
            raise RawDataError(f"{where}: answer is {row.get('answer')!r}; expected true or false")
        title, passage = text_of(row, "title", where), text_of(row, "passage", where)
        yield yes_no_passage(
            f"{title} -- {passage}", text_of(row, "question", where), yes=row["answer"]
        )


def yes_no_passage(passage: str, question: str, *, yes: bool) -> Record:
    """A question about a passage whose answer is yes or no; it ends in a question mark."""
    question = question if question.endswith("?") else f"{question}?"
    return Record(
        input=f"{passage}\n{question}",
        targets=("yes" if yes else "no",),
        fields=(("passage", passage), ("question", question)),
        options=YES_NO,
    )
