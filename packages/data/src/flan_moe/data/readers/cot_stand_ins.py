"""e-SNLI and QED, for the two chain-of-thought files that the Flan collection made of them.

e-SNLI as its authors publish it line by line (github.com/OanaMariaCamburu/e-SNLI): ``s1``, ``s2``,
``labels`` and ``preproc1_expl_1`` with the split as their suffix. QED as jsonlines
(github.com/google-research-datasets/QED). The training split is taken where it is at hand, else the
development split.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flan_moe.data.readers.json_rows import json_rows, text_of
from flan_moe.data.readers.record import RawDataError, RawTask, Record, keep_usable
from flan_moe.data.readers.sentence_label import FOLLOWS

SPLITS = ("train", "dev")
_BEFORE_MARK = re.compile(r"\s+(?=[.,;:!?)]|'\w|n't\b)")


@dataclass(frozen=True, kw_only=True)
class CotStandIn:
    """One of the two sets as a task.

    Attributes:
        name: Of the task.
        files: What it is read from.
        wordings: Kind of its problems.
        rows: Reads the files.
    """

    name: str
    files: tuple[Path, ...]
    wordings: str
    rows: Callable[..., Iterator[Record | None]]


def cot_stand_ins(folder: str | Path) -> list[CotStandIn]:
    """The sets found somewhere under a folder.

    Raises:
        RawDataError: None is.
    """
    folder = Path(folder)
    found = []
    esnli = _esnli_files(folder)
    if esnli:
        found.append(
            CotStandIn(name="cot_esnli", files=esnli, wordings="entailment", rows=read_esnli)
        )
    qed = next((file for s in SPLITS for file in sorted(folder.rglob(f"qed-{s}.jsonlines"))), None)
    if qed:
        found.append(
            CotStandIn(name="cot_qed", files=(qed,), wordings="passage_question", rows=read_qed)
        )
    if not found:
        raise RawDataError(f"{folder}: expected files of e-SNLI (s1.dev, ...) or qed-dev.jsonlines")
    return found


def _esnli_files(folder: Path) -> tuple[Path, ...]:
    for split in SPLITS:
        for first in sorted(folder.rglob(f"s1.{split}")):
            files = tuple(
                first.with_name(f"{name}.{split}")
                for name in ("s1", "s2", "labels", "preproc1_expl_1")
            )
            if all(file.is_file() for file in files):
                return files
    return ()


def read_cot_stand_in(task: CotStandIn) -> RawTask:
    """One of the sets.

    Raises:
        RawDataError: A file is damaged, or there is no usable row.
    """
    rows = list(task.rows(*task.files))
    records, dropped = keep_usable(row for row in rows if row is not None)
    if None in rows:
        dropped["no rationale"] = rows.count(None)
    if not records:
        raise RawDataError(f"{task.files[0]}: no usable row among {len(rows)}")
    return RawTask(
        name=task.name,
        file=task.files[0],
        definition=None,
        examples=(),
        records=records,
        read=len(rows),
        dropped=dropped,
        wordings=task.wordings,
    )


def read_esnli(
    premises: Path, hypotheses: Path, labels: Path, explanations: Path
) -> Iterator[Record | None]:
    """The rows of four files that belong together line by line; None for one without explanation.

    Raises:
        RawDataError: A file is missing or not UTF-8, the files have different numbers of lines, or
            a label is none of the three; names the line.
    """
    files = (premises, hypotheses, labels, explanations)
    columns = [_lines(file) for file in files]
    lengths = [len(column) for column in columns]
    if len(set(lengths)) > 1:
        counts = ", ".join(f"{n} in {f.name}" for f, n in zip(files, lengths, strict=True))
        raise RawDataError(f"{premises.parent}: {counts} lines; expected as many in each")
    for number, row in enumerate(zip(*columns, strict=True), start=1):
        premise, hypothesis, label, explanation = (_joined(text) for text in row)
        if label not in FOLLOWS:
            raise RawDataError(f"{labels}:{number}: {label!r}; expected one of {sorted(FOLLOWS)}")
        if not explanation:
            yield None
            continue
        yield Record(
            input=f"{premise}\n{hypothesis}",
            targets=(FOLLOWS[label],),
            rationale=_sentence(explanation),
            fields=(("premise", premise), ("hypothesis", hypothesis)),
            options=tuple(FOLLOWS.values()),
        )


def _sentence(text: str) -> str:
    """A capital first, a full stop last: the answer will follow."""
    return text[0].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise RawDataError(f"{file}: no such file") from None
    except UnicodeDecodeError as error:
        raise RawDataError(f"{file}: not UTF-8: {error}") from error


def _joined(text: str) -> str:
    """Text without the blanks that a tokenizer put before punctuation marks."""
    return _BEFORE_MARK.sub("", text.strip())


def read_qed(file: Path) -> Iterator[Record | None]:
    """The rows; None for one whose answer is not explained by one sentence.

    The reasoning is the sentence, and what in it the question refers to.

    Raises:
        RawDataError: A row is not of this form; names the line.
    """
    for where, row in json_rows(file):
        note = row.get("annotation")
        if not isinstance(note, dict):
            raise RawDataError(f"{where}: annotation: expected an object")
        if note.get("explanation_type") != "single_sentence":
            yield None
            continue
        question = f"{text_of(row, 'question_text', where).removesuffix('?').strip()}?"
        passage = _joined(text_of(row, "paragraph_text", where))
        answers = [
            _span(one, "paragraph_reference", where) for one in _spans(note, "answer", where)
        ]
        reasons = [f"The passage says: {_span(note, 'selected_sentence', where)}"]
        for pair in _spans(note, "referential_equalities", where):
            asked = _span(pair, "question_reference", where)
            said = _span(pair, "sentence_reference", where)
            if asked and said and asked.casefold() != said.casefold():
                reasons.append(f'"{asked}" in the question is "{said}" in the passage.')
        yield Record(
            input=f"{passage}\n{question}",
            targets=(", ".join(dict.fromkeys(answer for answer in answers if answer)),),
            rationale=" ".join(reasons),
            fields=(("passage", passage), ("question", question)),
        )


def _spans(note: dict[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    spans = note.get(key)
    if not isinstance(spans, list) or not all(isinstance(span, dict) for span in spans):
        raise RawDataError(f"{where}: annotation: {key}: expected a list of objects")
    return spans


def _span(note: dict[str, Any], key: str, where: str) -> str:
    span = note.get(key)
    if not isinstance(span, dict):
        raise RawDataError(f"{where}: annotation: {key}: expected an object")
    return _joined(text_of(span, "string", f"{where}: annotation: {key}"))
