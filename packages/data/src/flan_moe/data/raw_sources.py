"""Raw instruction data as task sources: what trains, what evaluates, in which forms."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from flan_moe.data.forms import Forms
from flan_moe.data.prompts import DEFINITION_LAYOUTS, QUESTION_LAYOUTS, definition_prompt, fill
from flan_moe.data.readers import (
    RawTask,
    Record,
    cot_files,
    jsonl_files,
    natural_instructions_files,
    read_cot_task,
    read_jsonl_task,
    read_natural_instructions_task,
)
from flan_moe.data.suite import EXEMPLARS, SuiteItem
from flan_moe.data.task_source import TaskContent, TaskSource

MAX_LABELS = 10  # a task with so few different answers is a classification
USES_PER_LABEL = 5  # and with so many problems for each of them
OPTION_SHARE = 0.95  # of the problems must list their options for a task to be multiple choice


@dataclass(frozen=True, kw_only=True)
class RawOptions:
    """How raw tasks are divided.

    Attributes:
        evaluation: Evaluation questions per task at most.
        validation: Validation problems per held-in task at most.
        examples: Training examples per task at most; None for all.
        seed: Of every choice.
    """

    evaluation: int = 50
    validation: int = 20
    examples: int | None = 5000
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: One is out of range; names it.
        """
        for key, least in (("evaluation", 0), ("validation", 0), ("examples", 1), ("seed", 0)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise ValueError(f"{key} is {value}; expected {least} or more")


def raw_sources(
    options: RawOptions,
    *,
    natural_instructions: str | Path | None = None,
    cot: str | Path | None = None,
    jsonl: str | Path | None = None,
    held_out: Iterable[str] = (),
) -> list[TaskSource]:
    """The tasks found in files or folders of the three raw formats.

    Args:
        options: How they are divided.
        natural_instructions: A task file, or a folder of them; mixture ``niv2``.
        cot: A Flan chain-of-thought ``.tsv`` file, or a folder of them; mixture ``cot``.
        jsonl: A ``.jsonl`` file, or a folder of them; mixture ``jsonl``.
        held_out: Names of tasks that are evaluated and not trained on. ``@FILE`` stands for the
            names in a file, one per line, such as a split of Natural Instructions; those that are
            not among the tasks are passed over.

    Raises:
        RawDataError: A path holds no such file.
        ValueError: Nothing is given, or a held-out name is not among the tasks.
    """
    formats: tuple[tuple[str, str | Path | None, Callable, Callable], ...] = (
        ("niv2", natural_instructions, natural_instructions_files, read_natural_instructions_task),
        ("cot", cot, cot_files, read_cot_task),
        ("jsonl", jsonl, jsonl_files, read_jsonl_task),
    )
    named, listed = _held_out_names(held_out)
    apart = named | listed
    sources = []
    for mixture, path, find, read in formats:
        for file in find(path) if path is not None else ():
            name = f"cot_{file.stem.removesuffix('_train')}" if mixture == "cot" else file.stem
            sources.append(
                TaskSource(
                    name=name,
                    mixture=mixture,
                    group="held_out" if name in apart else "held_in",
                    cot=mixture == "cot",
                    open=partial(_open, mixture, read, file, options, name in apart),
                    inputs=(file,),
                )
            )
    if not sources:
        raise ValueError("no raw data: give natural_instructions, cot or jsonl")
    unknown = sorted(named - {source.name for source in sources})
    if unknown:
        raise ValueError(f"held_out: no task {unknown[0]!r} among the {len(sources)} found")
    return sources


def _held_out_names(held_out: Iterable[str]) -> tuple[set[str], set[str]]:
    """The names given, and those that the files given list."""
    named: set[str] = set()
    listed: set[str] = set()
    for name in held_out:
        if name.startswith("@"):
            listed.update(_listed(Path(name[1:])))
        else:
            named.add(name)
    return named, listed


def _listed(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").split()
    except UnicodeDecodeError as error:
        raise ValueError(f"held_out: {file}: not UTF-8: {error}") from error


def _open(
    mixture: str,
    read: Callable[[Path], RawTask],
    file: Path,
    options: RawOptions,
    held_out: bool,
    fits: Callable[[str], bool],
) -> TaskContent:
    task = read(file)
    divided = divide(task, options, by_file_order=mixture == "niv2", held_out=held_out)
    forms = task_forms(task, mixture, divided.evaluation)
    options_of, kind, chance = answer_options(task.records)

    def askable(record: Record) -> bool:
        return kind == "generate" or record.targets[0] in (options_of(record) or ())

    train = () if held_out else divided.train
    validation = () if held_out else divided.validation
    name = f"{options.seed}/{task.name}"
    return TaskContent(
        train=forms.examples(train, seed=f"{name}/train", fits=fits),
        validation=forms.examples(validation, seed=f"{name}/validation", fits=fits),
        items=_items(filter(askable, divided.evaluation), forms, options_of, "q"),
        exemplars=_items(filter(askable, divided.exemplars), forms, options_of, "x"),
        kind=kind,
        chance=chance,
        dropped=task.dropped + divided.dropped,
    )


@dataclass(frozen=True, kw_only=True)
class Divided:
    """The records of one task by use; no problem is in two of the first three."""

    train: Sequence[Record]
    validation: Sequence[Record]
    evaluation: Sequence[Record]
    exemplars: Sequence[Record]
    dropped: Counter[str]


def divide(task: RawTask, options: RawOptions, *, by_file_order: bool, held_out: bool) -> Divided:
    """Divide a task's records into training, validation and evaluation, exemplars apart.

    Records with the same input are one problem and stay together. Evaluation takes the first
    problems (in the file's order for Natural Instructions, where the official evaluation instances
    are the first; in the order of a hash elsewhere), at most a quarter of a held-in task.

    Args:
        task: What was read.
        options: Numbers and seed.
        by_file_order: Whether the file's order decides.
        held_out: Whether the task is only evaluated; all but the exemplars may then be questions.
    """
    problems: dict[str, list[Record]] = {}
    for record in task.records:
        problems.setdefault(record.input, []).append(record)
    inputs = list(problems)
    if not by_file_order:
        inputs.sort(key=lambda text: hashlib.sha256(f"{options.seed}/{text}".encode()).digest())
    quarter = len(inputs) // 4
    most = max(len(inputs) - EXEMPLARS, 1) if held_out else quarter
    num_evaluation = min(options.evaluation, most)
    num_validation = min(max(options.validation, EXEMPLARS), quarter)
    evaluation = [problems[text][0] for text in inputs[:num_evaluation]]
    rest = inputs[num_evaluation:]
    validation = [record for text in rest[:num_validation] for record in problems[text]]
    train = [record for text in rest[num_validation:] for record in problems[text]]
    dropped: Counter[str] = Counter()
    if held_out:
        train = []
    elif options.examples is not None and len(train) > options.examples:
        dropped["over the number of examples per task"] = len(train) - options.examples
        chosen = Random(f"{options.seed}/{task.name}").sample(range(len(train)), options.examples)
        train = [train[index] for index in sorted(chosen)]
    firsts: dict[str, Record] = {}
    for record in [*unasked_examples(task, evaluation), *validation]:
        firsts.setdefault(record.input, record)
    return Divided(
        train=train,
        validation=validation[: options.validation],
        evaluation=evaluation,
        exemplars=list(firsts.values())[:EXEMPLARS],
        dropped=dropped,
    )


def unasked_examples(task: RawTask, evaluation: Iterable[Record]) -> list[Record]:
    """The solved examples of a task's definition, without those that are evaluation problems."""
    asked = {record.input for record in evaluation}
    return [Record(input=x, targets=(y,)) for x, y in task.examples if x not in asked]


def task_forms(task: RawTask, mixture: str, evaluation: Iterable[Record]) -> Forms[Record]:
    """The training forms of a raw task.

    Args:
        task: Gives the definition and its examples, if it has any.
        mixture: Where it belongs.
        evaluation: Problems that may not be shown under the definition.
    """
    given = unasked_examples(task, evaluation)

    def with_definition(record: Record, template: int, shown: Sequence[Record] = ()) -> str:
        pairs = [(example.input, example.targets[0]) for example in shown]
        return definition_prompt(task.definition or "", record.input, pairs, layout=template)

    def bare(record: Record, template: int) -> str:
        layout = QUESTION_LAYOUTS[template % len(QUESTION_LAYOUTS)]
        return fill(layout, {"question": record.input})

    def under_definition(
        record: Record, template: int, drawn: Sequence[Record]
    ) -> tuple[str, Sequence[Record]]:
        shown = [example for example in given if example.input != record.input][: len(drawn)]
        return with_definition(record, template, shown), shown

    defined = task.definition is not None
    return Forms(
        task=task.name,
        mixture=mixture,
        templates=len(DEFINITION_LAYOUTS if defined else QUESTION_LAYOUTS),
        key=lambda record: record.input,
        prompt=with_definition if defined else bare,
        answer=lambda record: record.targets[0],
        rationale=lambda record: record.rationale,
        cot=mixture == "cot",
        under_definition=under_definition if defined else None,
    )


def answer_options(
    records: Sequence[Record],
) -> tuple[Callable[[Record], tuple[str, ...] | None], str, float]:
    """Find out whether a task is multiple choice, and from what its answers are chosen.

    It is when almost every problem lists its options (lines that start with "- "), or when the
    answers of all problems are a few labels. Problems with several right answers are not.

    Returns:
        The options of a problem (None where it has none), the kind of the task, and the score of a
        blind guess.
    """
    labels = sorted({target for record in records for target in record.targets})
    single = all(len(record.targets) == 1 for record in records)
    few = 2 <= len(labels) <= MAX_LABELS and len(records) >= USES_PER_LABEL * len(labels)
    if single and few:
        return lambda record: tuple(labels), "multiple_choice", 1 / len(labels)
    found = [options for record in records if (options := _listed_options(record))]
    if single and len(found) >= OPTION_SHARE * len(records):
        chance = sum(1 / len(options) for options in found) / len(found)
        return _listed_options, "multiple_choice", round(chance, 6)
    return lambda record: None, "generate", 0.0


def _listed_options(record: Record) -> tuple[str, ...] | None:
    lines = record.input.splitlines()
    options = tuple(line[2:].strip() for line in lines if line.startswith("- "))
    usable = len(options) >= 2 and len(set(options)) == len(options)
    return options if usable and record.targets[0] in options else None


def _items(
    records: Iterable[Record],
    forms: Forms[Record],
    options_of: Callable[[Record], tuple[str, ...] | None],
    prefix: str,
) -> tuple[SuiteItem, ...]:
    return tuple(
        SuiteItem(
            id=f"{forms.task}-{prefix}{number}",
            input=forms.prompt(record, number),
            targets=record.targets,
            options=options_of(record),
            rationale=record.rationale,
            problem=forms.key(record),
        )
        for number, record in enumerate(records)
    )
