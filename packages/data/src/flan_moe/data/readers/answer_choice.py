r"""Answer-choice JSON as LLM-Adapters writes it: the options are inside one instruction text.

A list of ``{"instruction": "...: QUESTION\n\nAnswer1: a Answer2: b\n\nAnswer format: ...",
"answer": "answer2"}``; the word is Answer, Solution or Option
(github.com/AGI-Edgerunners/LLM-Adapters, ``dataset/``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from flan_moe.data.readers.json_rows import json_rows, text_of
from flan_moe.data.readers.record import RawDataError, Record

_INSTRUCTION = re.compile(
    r"Please choose the correct [^:]*?: (?P<question>.*?)\s*\n"
    r"(?P<options>(?:Answer|Solution|Option)1: .*?)\s*(?:Answer|Solution|Option) format: ",
    re.DOTALL,
)
_OPTION = re.compile(r"(?:^|\s)(?:Answer|Solution|Option)(\d): ")
_ANSWER = re.compile(r"(?:answer|solution|option)(\d)")


def read_answer_choice(file: Path, field: str = "question") -> Iterator[Record]:
    """The rows of a file.

    Args:
        file: The list of objects.
        field: What the question is called in the records' fields.

    Raises:
        RawDataError: A row is not of this form; names it.
    """
    for where, row in json_rows(file):
        instruction = _INSTRUCTION.match(text_of(row, "instruction", where))
        chosen = _ANSWER.fullmatch(text_of(row, "answer", where))
        if instruction is None or chosen is None:
            raise RawDataError(
                f"{where}: expected an instruction 'Please choose the correct ...: ...' with "
                "numbered options and an answer such as 'answer2'"
            )
        question = instruction["question"].strip()
        # What stands before the first option is empty; then number and text take turns.
        parts = _OPTION.split(instruction["options"])[1:]
        numbers, options = parts[::2], tuple(text.strip() for text in parts[1::2])
        if numbers != [str(n + 1) for n in range(len(numbers))] or chosen[1] not in numbers:
            raise RawDataError(
                f"{where}: options are numbered {', '.join(numbers)} and the answer is "
                f"{chosen[1]}; expected 1, 2, ... and one of them"
            )
        yield Record(
            input=question,
            targets=(options[int(chosen[1]) - 1],),
            fields=((field, question),),
            options=options,
        )
