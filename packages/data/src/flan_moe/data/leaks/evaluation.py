"""Readers of evaluation data, for comparing only: the questions, without options and answers.

Known are the published files of MMLU, BIG-Bench Hard, GSM8K, SVAMP, ASDiv, StrategyQA, ARC and
BoolQ, the suites of ``flan-moe-eval``, and plain jsonl.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from flan_moe.data.readers import RawDataError

_PLAIN_KEYS = ("question", "problem", "input", "prompt", "text")


@dataclass(frozen=True, kw_only=True)
class EvaluationItem:
    """One question.

    Attributes:
        set: Evaluation set that it belongs to.
        id: Within the set, to be found again.
        parts: Its text; more than one where something may stand between them, such as a story and
            what is asked about it. Of reading comprehension the question alone: passages are often
            Wikipedia's, and many data sets share them.
    """

    set: str
    id: str
    parts: tuple[str, ...]


def read_evaluation(name: str, path: str | Path) -> list[EvaluationItem]:
    """Read one evaluation set.

    Args:
        name: A key of `EVALUATION_FORMATS`.
        path: A file of that format, or a folder of such files.

    Returns:
        The items, in the order of the files' names.

    Raises:
        RawDataError: A file is missing or is not of the format; names the file.
        ValueError: There is no such format.
    """
    if name not in EVALUATION_FORMATS:
        raise ValueError(
            f"no evaluation format {name!r}; expected one of {', '.join(EVALUATION_FORMATS)}"
        )
    pattern, read = EVALUATION_FORMATS[name]
    path = Path(path)
    files = [path] if path.is_file() else sorted(path.glob(pattern))
    if not files:
        raise RawDataError(f"{path}: expected a file or folder of {name} ({pattern})")
    items = []
    for file in files:
        try:
            texts = list(read(file))
        except (OSError, UnicodeDecodeError, ElementTree.ParseError, csv.Error) as error:
            raise RawDataError(f"{file}: not a file of {name}: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, RawDataError):
                raise
            raise RawDataError(
                f"{file}: not a file of {name}: {type(error).__name__}: {error}"
            ) from error
        if not texts:
            raise RawDataError(f"{file}: no questions of {name}")
        for number, parts in enumerate(texts):
            if not all(isinstance(part, str) for part in parts):
                raise RawDataError(f"{file}: item {number} of {name}: expected text")
            items.append(EvaluationItem(set=name, id=f"{file.stem}/{number}", parts=parts))
    return items


Texts = Iterator[tuple[str, ...]]


def _json(file: Path) -> Any:
    return json.loads(file.read_bytes())


def _json_lines(file: Path) -> Iterator[Any]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _mmlu(file: Path) -> Texts:
    with file.open(encoding="utf-8", newline="") as stream:
        for number, row in enumerate(csv.reader(stream)):
            if len(row) != 6:
                raise ValueError(f"row {number} has {len(row)} columns; expected 6")
            yield (row[0],)


def _bbh(file: Path) -> Texts:
    for example in _json(file)["examples"]:
        yield (example["input"].split("\nOptions:")[0],)


def _question_lines(file: Path) -> Texts:
    for row in _json_lines(file):
        yield (row["question"],)


def _svamp(file: Path) -> Texts:
    for row in _json(file):
        yield row["Body"], row["Question"]


def _asdiv(file: Path) -> Texts:
    for problem in ElementTree.parse(file).getroot().iter("Problem"):
        yield problem.findtext("Body"), problem.findtext("Question")


def _strategyqa(file: Path) -> Texts:
    for row in _json(file):
        yield (row["question"],)


_ARC_FRAME = re.compile(
    r"\s*Please choose the correct answer to the question: (.*?)\n\nAnswer1:", re.DOTALL
)


def _arc(file: Path) -> Texts:
    if file.suffix == ".jsonl":
        for row in _json_lines(file):
            yield (row["question"]["stem"],)
        return
    for number, row in enumerate(_json(file)):
        match = _ARC_FRAME.match(row["instruction"])
        if match is None:
            raise ValueError(f"item {number}: no question before 'Answer1:'")
        yield (match.group(1),)


def _boolq(file: Path) -> Texts:
    for row in _json_lines(file):
        yield (row["question"],)


def _suite(file: Path) -> Texts:
    """The questions of a suite as they are asked: its files have no bare ones."""
    for task in _json(file)["tasks"]:
        name = task["file"]
        if Path(name).name != name:
            raise ValueError(f"file {name!r} leaves the folder of the suite")
        for row in _json_lines(file.parent / name):
            yield (row["input"],)


def _plain(file: Path) -> Texts:
    for number, row in enumerate(_json_lines(file), start=1):
        key = next((key for key in _PLAIN_KEYS if key in row), None)
        if key is None:
            raise ValueError(f"line {number} has none of {', '.join(_PLAIN_KEYS)}")
        yield (row[key],)


# Name, then which files of a folder are meant and how one is read.
EVALUATION_FORMATS: Mapping[str, tuple[str, Callable[[Path], Iterable[tuple[str, ...]]]]] = {
    "mmlu": ("*.csv", _mmlu),
    "bbh": ("*.json", _bbh),
    "gsm8k": ("test.jsonl", _question_lines),
    "svamp": ("SVAMP.json", _svamp),
    "asdiv": ("ASDiv.xml", _asdiv),
    "strategyqa": ("dev.json", _strategyqa),
    "arc": ("test.json", _arc),
    "boolq": ("dev.jsonl", _boolq),
    "suite": ("suite.json", _suite),
    "jsonl": ("*.jsonl", _plain),
}
