"""Sets that Muffin tasks can be made of, recognised by the names of their files.

The names are those of the sources: LLM-Adapters (``ARC-Easy/train.json``), O-LoRA
(``NLI/CB/train.json``), ARC and BoolQ themselves, DrRepair. Only files to train on are taken, and
never a test file of a set that evaluation suites use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from flan_moe.data.readers import sentence_label
from flan_moe.data.readers.answer_choice import read_answer_choice
from flan_moe.data.readers.arc import read_arc
from flan_moe.data.readers.boolq import read_boolq
from flan_moe.data.readers.dr_repair import read_dr_repair
from flan_moe.data.readers.record import RawDataError, RawTask, Record, keep_usable
from flan_moe.data.readers.sentence_label import SentenceForm, read_sentence_label

Read = Callable[[Path], Iterator[Record]]


@dataclass(frozen=True, kw_only=True)
class MuffinSet:
    """One task of Muffin.

    Attributes:
        task: Its name in the Flan collection.
        wordings: Kind of problem.
        train: Ends of file names, in lower case, and their readers.
        stand_ins: The same for files of other splits, which may stand in where no file to train
            on is at hand and the caller allows it.
    """

    task: str
    wordings: str
    train: tuple[tuple[str, Read], ...] = ()
    stand_ins: tuple[tuple[str, Read], ...] = ()


def _sentences(task: str, wordings: str, folder: str, form: SentenceForm) -> MuffinSet:
    read = partial(read_sentence_label, form=form)
    return MuffinSet(task=task, wordings=wordings, train=((f"{folder}/train.json", read),))


def _repair(shown: str, wordings: str) -> MuffinSet:
    read = partial(read_dr_repair, shown=shown)
    return MuffinSet(
        task=f"dr_repair_{shown}",
        wordings=wordings,
        train=(("err-train.jsonl", read),),
        stand_ins=(("err-dev.1000.jsonl", read), ("err-dev.jsonl", read)),
    )


def _choice(task: str, wordings: str, folder: str, field: str) -> MuffinSet:
    read = partial(read_answer_choice, field=field)
    return MuffinSet(
        task=task,
        wordings=wordings,
        train=((f"{folder}/train.json", read),),
        stand_ins=((f"{folder}/test.json", read),),
    )


def _arc(level: str) -> MuffinSet:
    return MuffinSet(
        task=f"arc_{level}",
        wordings="question_choice",
        train=(
            (f"arc-{level}/train.json", read_answer_choice),
            (f"arc-{level}-train.jsonl", read_arc),
        ),
    )


SETS: tuple[MuffinSet, ...] = (
    _arc("easy"),
    _arc("challenge"),
    MuffinSet(
        task="openbookqa",
        wordings="question_choice",
        train=(("openbookqa/train.json", read_answer_choice),),
    ),
    _choice("piqa", "goal_choice", "piqa", "goal"),
    _choice("winogrande", "blank_choice", "winogrande", "sentence"),
    MuffinSet(
        task="bool_q",
        wordings="yes_no_passage",
        train=(
            ("boolq/train.jsonl", read_boolq),
            ("boolqa/train.json", partial(read_sentence_label, form=sentence_label.BOOLQ)),
            (
                "boolq/olora_train_2000.json",
                partial(read_sentence_label, form=sentence_label.BOOLQ),
            ),
        ),
    ),
    _sentences("cb", "entailment", "cb", sentence_label.NLI),
    _sentences("mnli_matched", "entailment", "mnli", sentence_label.NLI),
    _sentences("rte", "entailment", "rte", sentence_label.NLI_TWO),
    _sentences("glue_qqp", "paraphrase", "qqp", sentence_label.QQP),
    _sentences("imdb_reviews", "sentiment", "imdb", sentence_label.SENTIMENT),
    _sentences("sst2", "sentiment", "sst-2", sentence_label.SENTIMENT),
    _sentences("ag_news_subset", "topic", "agnews", sentence_label.TOPIC),
    _sentences("wic", "word_sense", "wic", sentence_label.WIC),
    _sentences("multirc", "candidate_answer", "multirc", sentence_label.MULTIRC),
    _sentences("copa", "cause_effect", "copa", sentence_label.COPA),
    _repair("no_errors", "repair"),
    _repair("plain_code", "repair_with_message"),
    _repair("line_numbers", "repair_line"),
    _repair("error_comments", "repair"),
)


@dataclass(frozen=True, kw_only=True)
class MuffinFiles:
    """A set and the files of it that were found, each with its reader."""

    found: MuffinSet
    files: tuple[tuple[Path, Read], ...]


def muffin_files(folder: str | Path, *, stand_ins: bool = False) -> list[MuffinFiles]:
    """The sets that have files somewhere under a folder.

    Args:
        folder: Searched with all its folders.
        stand_ins: Whether a set without a file to train on may take another split.

    Raises:
        RawDataError: The folder does not exist or holds none.
    """
    folder = Path(folder)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    result = []
    for one in SETS:
        found = _matching(files, one.train)
        if not found and stand_ins:
            found = _matching(files, one.stand_ins)
        if found:
            result.append(MuffinFiles(found=one, files=found))
    if not result:
        ends = ", ".join(end for one in SETS for end, _ in one.train)
        raise RawDataError(f"{folder}: expected a folder with files that end in one of: {ends}")
    return result


def _matching(
    files: list[Path], rules: tuple[tuple[str, Read], ...]
) -> tuple[tuple[Path, Read], ...]:
    return tuple(
        (file, read)
        for end, read in rules
        for file in files
        if file.absolute().as_posix().lower().endswith(f"/{end}")
    )


def read_muffin_task(files: MuffinFiles) -> RawTask:
    """All files of a set as one task.

    Raises:
        RawDataError: A file is damaged, or there is no usable row.
    """
    rows = list(chain.from_iterable(read(file) for file, read in files.files))
    records, dropped = keep_usable(rows)
    if not records:
        raise RawDataError(f"{files.files[0][0]}: no usable row among {len(rows)}")
    return RawTask(
        name=files.found.task,
        file=files.files[0][0],
        definition=None,
        examples=(),
        records=records,
        read=len(rows),
        dropped=dropped,
        wordings=files.found.wordings,
    )
