"""Chain-of-thought files of the Flan collection: three tab-separated columns, no header.

``question``, ``answer``, ``chain_of_thought``. A newline inside a question or a rationale is the
two characters backslash and n (google-research/FLAN, flan/v2/cot_data).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from flan_moe.data.readers.listing import files_under
from flan_moe.data.readers.location import RawFile, as_file
from flan_moe.data.readers.record import (
    RawDataError,
    RawTask,
    Record,
    keep_usable,
    whole_lines,
)

COLUMNS = 3


def cot_files(path: str | Path) -> list[RawFile]:
    """The ``.tsv`` files of a folder, or the one file given."""
    return files_under(path, "*.tsv", "a Flan chain-of-thought .tsv file")


def cot_task_name(file: RawFile) -> str:
    """``gsm8k_train.tsv`` holds ``cot_gsm8k``."""
    return "cot_" + file.stem.removesuffix("_train")


def read_cot_rows(file: str | RawFile) -> Iterator[Record]:
    """The rows of a file, one at a time.

    Raises:
        RawDataError: A line has not three columns, or the file is truncated; names the line.
    """
    for number, line in whole_lines(as_file(file)):
        columns = line.split("\t")
        if len(columns) != COLUMNS:
            raise RawDataError(
                f"{file}:{number}: {len(columns)} tab-separated columns; expected {COLUMNS}: "
                "question, answer, chain of thought"
            )
        question, answer, rationale = (column.strip() for column in columns)
        yield Record(
            input=question.replace("\\n", "\n").strip(),
            targets=(answer,),
            rationale=rationale.replace("\\n", "\n").strip() or None,
        )


def read_cot_task(file: str | RawFile) -> RawTask:
    """A file as one task, named after it: ``gsm8k_train.tsv`` is ``cot_gsm8k``.

    Raises:
        RawDataError: As `read_cot_rows`, or there is no usable row.
    """
    file = as_file(file)
    rows = list(read_cot_rows(file))
    records, dropped = keep_usable(rows)
    unreasoned = [record for record in records if record.rationale is None]
    if unreasoned:
        dropped["no rationale"] += len(unreasoned)
        records = tuple(record for record in records if record.rationale is not None)
    if not records:
        raise RawDataError(f"{file}: no usable row among {len(rows)}")
    return RawTask(
        name=cot_task_name(file),
        file=file,
        definition=None,
        examples=(),
        records=records,
        read=len(rows),
        dropped=dropped,
    )
