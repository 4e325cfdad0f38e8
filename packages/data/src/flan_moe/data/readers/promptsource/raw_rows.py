"""Rows out of what authors published, in the columns that the data set has on the hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flan_moe.data.readers.arc import stem_and_choices
from flan_moe.data.readers.json_rows import json_rows, text_of
from flan_moe.data.readers.record import RawDataError


def raw_layouts(
    folder: Path, dataset: str, subset: str | None
) -> CosERows | WebQuestionsRows | None:
    """The rows of a data set, if its published files are under a folder."""
    if dataset == "cos_e" and subset is not None:
        questions = sorted(folder.rglob(f"commonsenseqa_{subset}_train_rand_split.jsonl"))
        reasons = sorted(folder.rglob(f"cose_train_{subset}_processed.jsonl"))
        if questions and reasons:
            return CosERows(questions=questions[0], reasons=reasons[0])
    if dataset == "web_questions":
        parts = ("trainmodel.json", "val.json", "devtest.json")  # together, the training split
        files = [
            file for part in parts for file in sorted(folder.rglob(f"web_questions/**/{part}"))
        ]
        if files:
            return WebQuestionsRows(files=tuple(files))
    return None


@dataclass(frozen=True, kw_only=True)
class CosERows:
    """CommonsenseQA questions joined with their CoS-E explanations (salesforce/cos-e)."""

    questions: Path
    reasons: Path

    @property
    def files(self) -> tuple[Path, ...]:
        """Both files."""
        return (self.questions, self.reasons)

    def __call__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The rows, in the order of the questions.

        Raises:
            RawDataError: A file is damaged, or a question has no explanation.
        """
        reasons = {}
        for where, row in json_rows(self.reasons):
            explanation = row.get("explanation")
            if not isinstance(explanation, dict):
                raise RawDataError(f"{where}: explanation: expected an object")
            reasons[text_of(row, "id", where)] = (where, explanation)
        for where, row in json_rows(self.questions):
            key = text_of(row, "id", where)
            if key not in reasons:
                raise RawDataError(f"{where}: id {key!r}: no explanation in {self.reasons}")
            place, explanation = reasons[key]
            stem, options, answer = stem_and_choices(row, where)
            yield (
                where,
                {
                    "id": key,
                    "question": stem,
                    "choices": list(options),
                    "answer": answer,
                    "abstractive_explanation": text_of(explanation, "open-ended", place),
                    "extractive_explanation": text_of(explanation, "selected", place),
                },
            )


@dataclass(frozen=True, kw_only=True)
class WebQuestionsRows:
    """WebQuestions as JSON lists of ``{"qId", "qText", "answers"}``.

    (github.com/brmson/dataset-factoid-webquestions)
    """

    files: tuple[Path, ...]

    def __call__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The rows, file after file.

        Raises:
            RawDataError: A file is damaged.
        """
        for file in self.files:
            for where, row in json_rows(file):
                answers = row.get("answers")
                if not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
                    raise RawDataError(f"{where}: answers: expected a list of texts")
                question = text_of(row, "qText", where)
                yield where, {"url": "", "question": question, "answers": answers}
