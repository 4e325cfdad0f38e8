"""ARC's own jsonl (also of the AI2 science questions and of CommonsenseQA).

``{"id", "question": {"stem", "choices": [{"label", "text"}]}, "answerKey"}``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flan_moe.data.readers.json_rows import json_rows, text_of
from flan_moe.data.readers.record import RawDataError, Record


def read_arc(file: Path) -> Iterator[Record]:
    """The rows of a file.

    Raises:
        RawDataError: A row is not of this form; names it.
    """
    for where, row in json_rows(file):
        stem, options, answer = stem_and_choices(row, where)
        yield Record(
            input=stem,
            targets=(answer,),
            fields=(("question", stem),),
            options=options,
        )


def stem_and_choices(row: dict[str, Any], where: str) -> tuple[str, tuple[str, ...], str]:
    """Question, options and the right one of a row.

    Raises:
        RawDataError: Something is missing, a label comes twice, or the key names no choice.
    """
    question = row.get("question")
    choices = question.get("choices") if isinstance(question, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise RawDataError(f"{where}: question: expected an object with 'stem' and 'choices'")
    texts = {
        text_of(choice, "label", f"{where}: question: choices"): text_of(
            choice, "text", f"{where}: question: choices"
        )
        for choice in choices
    }
    if len(texts) != len(choices):
        raise RawDataError(f"{where}: question: choices: a label comes twice; expected each once")
    key = text_of(row, "answerKey", where)
    if key not in texts:
        raise RawDataError(f"{where}: answerKey is {key!r}; expected one of {sorted(texts)}")
    return text_of(question, "stem", f"{where}: question"), tuple(texts.values()), texts[key]
