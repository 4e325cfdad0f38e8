"""What the answers of a raw task are chosen from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flan_moe.data.readers import Record

MAX_LABELS = 10  # a task with so few different answers is a classification
USES_PER_LABEL = 5  # and with so many problems for each of them
OPTION_SHARE = 0.95  # of the problems must list their options for a task to be multiple choice


def answer_options(
    records: Sequence[Record],
) -> tuple[Callable[[Record], tuple[str, ...] | None], str, float]:
    """Find out whether a task is multiple choice, and from what its answers are chosen.

    It is when almost every problem has options of its own or lists them (lines that start with
    "- "), or when the answers of all problems are a few labels. Problems with several right answers
    are not.

    Returns:
        The options of a problem (None where it has none), the kind of the task, and the score of a
        blind guess.
    """
    labels = sorted({target for record in records for target in record.targets})
    single = all(len(record.targets) == 1 for record in records)
    few = 2 <= len(labels) <= MAX_LABELS and len(records) >= USES_PER_LABEL * len(labels)
    own = [options for record in records if (options := _own_options(record))]
    if single and len(own) >= OPTION_SHARE * len(records):
        chance = sum(1 / len(options) for options in own) / len(own)
        return _own_options, "multiple_choice", round(chance, 6)
    if single and few:
        return lambda record: tuple(labels), "multiple_choice", 1 / len(labels)
    found = [options for record in records if (options := _listed_options(record))]
    if single and len(found) >= OPTION_SHARE * len(records):
        chance = sum(1 / len(options) for options in found) / len(found)
        return _listed_options, "multiple_choice", round(chance, 6)
    return lambda record: None, "generate", 0.0


def _own_options(record: Record) -> tuple[str, ...] | None:
    return _usable(record, record.options or ())


def _listed_options(record: Record) -> tuple[str, ...] | None:
    lines = record.input.splitlines()
    options = tuple(line[2:].strip() for line in lines if line.startswith("- "))
    return _usable(record, options)


def _usable(record: Record, options: tuple[str, ...]) -> tuple[str, ...] | None:
    usable = len(options) >= 2 and len(set(options)) == len(options)
    return options if usable and record.targets[0] in options else None
