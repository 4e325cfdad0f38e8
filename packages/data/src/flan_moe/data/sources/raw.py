"""Raw instruction data as task sources: what trains, what evaluates, in which forms."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from flan_moe.data.forms import Forms
from flan_moe.data.readers import RawTask, Record
from flan_moe.data.registry import load_registry
from flan_moe.data.sources.answers import answer_options
from flan_moe.data.sources.division import Divided, RawOptions, divide
from flan_moe.data.sources.held_out import held_out_names
from flan_moe.data.sources.inversion import inverted_examples, inverted_name
from flan_moe.data.sources.prompt_forms import task_forms
from flan_moe.data.sources.task_source import TaskContent, TaskSource
from flan_moe.data.sources.tasks import FoundTask, found_tasks
from flan_moe.data.suite import SuiteItem

__all__ = ["Divided", "RawOptions", "answer_options", "divide", "raw_sources", "task_forms"]

# The MMLU questions among Natural Instructions; the Flan collection trains on none of them.
MMLU_TASK = re.compile(r"task\d+_mmmlu_")


def raw_sources(
    options: RawOptions,
    *,
    natural_instructions: str | Path | None = None,
    cot: str | Path | None = None,
    cot_stand_ins: str | Path | None = None,
    muffin: str | Path | None = None,
    t0_sf: str | Path | None = None,
    jsonl: str | Path | None = None,
    templated: str | Path | None = None,
    held_out: Iterable[str] = (),
    stand_ins: bool = False,
    inversion: bool = False,
) -> list[TaskSource]:
    """The tasks found in files or folders of the raw formats.

    The MMLU tasks of Natural Instructions are always held out, as in the Flan collection.

    Args:
        options: How they are divided.
        natural_instructions: A task file, a folder of them, or a ``.jsonl(.gz|.xz)`` file with a
            task per line; mixture ``niv2``.
        cot: A Flan chain-of-thought ``.tsv`` file, or a folder of them; mixture ``cot``.
        cot_stand_ins: A folder with e-SNLI or QED, for the files of those two; mixture ``cot``.
        muffin: A folder with sets that Muffin tasks are made of; mixture ``muffin``.
        t0_sf: A folder with promptsource templates and rows for them; mixture ``t0_sf``.
        jsonl: A ``.jsonl`` file, or a folder of them; mixture ``jsonl``.
        templated: A spool of templated rows, made by ``ingest``.
        held_out: Names of tasks that are evaluated and not trained on. ``@FILE`` stands for the
            names in a file, one per line, such as a split of Natural Instructions, and ``@SET`` for
            the tasks that overlap with an evaluation set, ``@evaluation`` for those of all sets;
            those that are not among the tasks found are passed over.
        stand_ins: Whether a Muffin set without a training file may take another of its splits.
        inversion: Whether chain-of-thought tasks get inverted twins, ``cot_input_inversion_*``.

    Raises:
        RawDataError: A path holds no such file.
        ValueError: Nothing is given, or a held-out name is not among the tasks.
    """
    named, listed = held_out_names(held_out)
    registry = load_registry()
    sources = []
    for found in found_tasks(
        natural_instructions=natural_instructions,
        cot=cot,
        cot_stand_ins=cot_stand_ins,
        muffin=muffin,
        t0_sf=t0_sf,
        jsonl=jsonl,
        stand_ins=stand_ins,
        seed=options.seed,
    ):
        apart = found.name in named | listed or MMLU_TASK.match(found.name) is not None
        source = TaskSource(
            name=found.name,
            mixture=found.mixture,
            group="held_out" if apart else "held_in",
            cot=found.mixture == "cot",
            open=partial(_open, found, options, apart),
            inputs=tuple(file for file in found.files if isinstance(file, Path)),
            provenance=registry.provenance(found.name),
        )
        sources.append(source)
        if inversion and source.cot and not apart:
            sources.append(
                replace(
                    source,
                    name=inverted_name(found.name),
                    cot=False,
                    open=partial(_open_inverted, found, options),
                )
            )
    if templated is not None:
        from flan_moe.data.sources.templated import templated_sources

        sources += templated_sources(templated, options, held_out=named | listed)
    if not sources:
        raise ValueError(
            "no raw data: give natural_instructions, cot, cot_stand_ins, muffin, t0_sf, jsonl or "
            "templated"
        )
    unknown = sorted(named - {source.name for source in sources})
    if unknown:
        raise ValueError(f"held_out: no task {unknown[0]!r} among the {len(sources)} found")
    return sources


def _divided(task: RawTask, mixture: str, options: RawOptions, held_out: bool) -> Divided:
    return divide(task, options, by_file_order=mixture == "niv2", held_out=held_out)


def _open(
    found: FoundTask, options: RawOptions, held_out: bool, fits: Callable[[str], bool]
) -> TaskContent:
    task = found.read()
    divided = _divided(task, found.mixture, options, held_out)
    forms = task_forms(task, found.mixture, divided.evaluation, options.shares)
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


def _open_inverted(
    found: FoundTask, options: RawOptions, fits: Callable[[str], bool]
) -> TaskContent:
    """The inverted twin of a task: the same problems for training, none for evaluation."""
    task = found.read()
    divided = _divided(task, found.mixture, options, held_out=False)
    make = partial(inverted_examples, task, fits=fits, shares=options.shares)
    name = f"{options.seed}/{inverted_name(task.name)}"
    return TaskContent(
        train=make(divided.train, seed=f"{name}/train"),
        validation=make(divided.validation, seed=f"{name}/validation"),
        items=(),
        exemplars=(),
        kind="generate",
        chance=0.0,
    )


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
