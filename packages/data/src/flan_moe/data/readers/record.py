"""What every reader yields, and the checks they share."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from flan_moe.data.readers.errors import RawDataError
from flan_moe.data.readers.location import RawFile

LONGEST_LINE = 1 << 26  # bytes; more is no line of text, and has no place in memory


@dataclass(frozen=True, kw_only=True)
class Record:
    """One solved problem as its file holds it.

    Attributes:
        input: The problem.
        targets: One or more right answers.
        rationale: Reasoning that leads to the answer, if the file has it.
        fields: Name, then value: the parts of the problem, for wordings that have places for them.
        options: What the answer is chosen from, where the file keeps it apart from the problem.
    """

    input: str
    targets: tuple[str, ...]
    rationale: str | None = None
    fields: tuple[tuple[str, str], ...] = ()
    options: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class RawTask:
    """One task as its file holds it.

    Attributes:
        name: Taken from the file's name.
        file: Where it was read.
        definition: What is to be done, for tasks that state it apart from the problems.
        examples: Solved (input, output) pairs that come with the definition.
        records: The problems kept, in the file's order.
        read: Number of records in the file.
        dropped: Reason, then the number of records left out; with ``records`` they add up to
            ``read``.
        explanations: Why the outputs of ``examples`` are right, one for each; empty for none.
        wordings: Kind of problem (`flan_moe.data.forms.wordings.WORDINGS`) that the records'
            fields are for; None: the input is all there is.
        options_listed: Whether the problems' own text lists the options already.
    """

    name: str
    file: RawFile
    definition: str | None
    examples: tuple[tuple[str, str], ...]
    records: tuple[Record, ...]
    read: int
    dropped: Counter[str]
    explanations: tuple[str, ...] = ()
    wordings: str | None = None
    options_listed: bool = False


def keep_usable(records: Iterable[Record]) -> tuple[tuple[Record, ...], Counter[str]]:
    """Leave out records without input or answer, and exact repetitions.

    Returns:
        What is kept, in order, and how many were left out for which reason.
    """
    dropped: Counter[str] = Counter()
    kept: dict[Record, None] = {}
    for record in records:
        if not record.input:
            dropped["empty input"] += 1
        elif not any(record.targets):
            dropped["empty answer"] += 1
        elif record in kept:
            dropped["repeated record"] += 1
        else:
            kept[record] = None
    return tuple(kept), dropped


def refuse_surrogates(where: str, *texts: str) -> None:
    """Refuse text that no tokenizer takes: JSON can spell one half of a pair of surrogates.

    Raises:
        RawDataError: Starts with ``where``.
    """
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RawDataError(f"{where}: not Unicode text: {error}") from error


def whole_lines(file: RawFile) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file with their numbers, without the line ends.

    A byte order mark at the start is passed over. Only a line feed ends a line; other separators of
    Unicode may stand inside a field. A name that ends in ``.gz`` is decompressed; its own checks
    then tell whether it is whole.

    Raises:
        RawDataError: The file is missing, damaged or out of reach, a line is not UTF-8 or has no
            end in sight, or the last line has no end, which is how a truncated file looks.
    """
    packed = file.name.endswith(".gz")
    number = 0
    try:
        with file.open("rb") as raw:
            stream = io.BufferedReader(gzip.GzipFile(fileobj=raw)) if packed else raw
            while line := stream.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise RawDataError(f"{file}:{number}: longer than {LONGEST_LINE} bytes")
                if not packed and not line.endswith(b"\n"):
                    raise RawDataError(
                        f"{file}:{number}: the last line has no line end; the file is truncated"
                    )
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                try:
                    yield number, line.decode("utf-8").removesuffix("\n").removesuffix("\r")
                except UnicodeDecodeError as error:
                    raise RawDataError(f"{file}:{number}: not UTF-8: {error}") from error
    except FileNotFoundError:
        raise RawDataError(f"{file}: no such file") from None
    except EOFError as error:
        raise RawDataError(f"{file}:{number + 1}: the gzip file is truncated") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise RawDataError(f"{file}:{number + 1}: not a whole gzip file: {error}") from error
