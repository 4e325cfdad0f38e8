"""Builds a data directory from task sources: tokenizer, shards, task tables, suite, manifest."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flan_moe.data.json_types import LARGEST
from flan_moe.data.manifest import MANIFEST_FILE, Manifest, file_sha256
from flan_moe.data.shards import DEFAULT_SHARD_BYTES, INDEX, read_mds, write_webdataset
from flan_moe.data.shown import ShownProblems
from flan_moe.data.split_writer import SplitWriter
from flan_moe.data.staging import check_output_directory, staged_directory
from flan_moe.data.suite import SuiteTask, write_suite
from flan_moe.data.task_source import TaskContent, TaskSource
from flan_moe.data.task_table import TABLE_FILE
from flan_moe.data.tokenizer import (
    TextEncoder,
    copy_tokenizer,
    load_tokenizer,
    tokenizer_fingerprint,
    train_tokenizer,
    write_tokenizer_files,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPLITS = ("train", "validation")
TOKENIZER_SAMPLE = 1000  # training examples per task that a new tokenizer learns from
REPORT_EVERY = 12  # tasks between progress lines where tasks go by fast
LARGEST_COUNT = 2**32 - 1  # of ids, of tokens in a row, and of bytes in an MDS shard
CHARACTERS_PER_TOKEN = 4  # guess of a prompt's length before there is a tokenizer


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How to build; see ``flan-moe-data build --help``.

    Attributes:
        name: Of the data set and its suite.
        source: Where the data come from, for people.
        seed: Recorded; the task sources already carry it.
        vocab_size: Of the tokenizer to train.
        tokenizer: Name or path of a tokenizer to use instead of training one.
        max_input_tokens: Few-shot prompts drop exemplars until they fit.
        max_target_tokens: Recorded as the budget of the targets.
        shard_bytes: Largest size of an MDS shard.
        webdataset: Write the same samples as tars as well.
        overwrite: Replace an existing data directory.
    """

    name: str
    source: str
    seed: int = 0
    vocab_size: int = 2048
    tokenizer: str | None = None
    max_input_tokens: int = 256
    max_target_tokens: int = 48
    shard_bytes: int = DEFAULT_SHARD_BYTES
    webdataset: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: One is out of range; names it.
        """
        if not 0 <= self.seed <= LARGEST:
            raise ValueError(f"seed is {self.seed}; expected 0 to 2**63 - 1")
        for key in ("vocab_size", "max_input_tokens", "max_target_tokens", "shard_bytes"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}; expected a positive number")
            if getattr(self, key) > LARGEST_COUNT:
                raise ValueError(
                    f"{key} is {getattr(self, key)}; expected at most {LARGEST_COUNT:,}"
                )


@dataclass
class _Tally:
    """What has been written so far, over all mixtures."""

    tasks: list[dict[str, Any]] = field(default_factory=list)
    splits: dict[str, dict[str, dict[str, int]]] = field(
        default_factory=lambda: {split: {} for split in SPLITS}
    )
    dropped: Counter[str] = field(default_factory=Counter)
    suite: list[SuiteTask] = field(default_factory=list)
    shown: ShownProblems = field(default_factory=ShownProblems)


def build_data_directory(
    out: str | Path,
    sources: Sequence[TaskSource],
    options: BuildOptions,
    *,
    report: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> Manifest:
    """Build everything under a temporary name and rename it to ``out`` when it is complete.

    Equal sources and options give equal bytes.

    Args:
        out: The data directory.
        sources: The tasks, in the order of their ids.
        options: How to build.
        report: Told about progress, line by line.

    Returns:
        The manifest that was written.

    Raises:
        FileExistsError: ``out`` exists and may not be replaced.
        ValueError: A source is malformed, or nothing is left to train on.
    """
    check_output_directory(out, overwrite=options.overwrite, marker=MANIFEST_FILE)
    _check_sources(sources)
    with staged_directory(out, overwrite=options.overwrite, marker=MANIFEST_FILE) as staging:
        tokenizer = _make_tokenizer(staging / "tokenizer", sources, options, report)
        encoder = TextEncoder.of(tokenizer)
        tally = _Tally()
        for mixture in dict.fromkeys(source.mixture for source in sources):
            _write_mixture(staging, mixture, sources, encoder, options, tally, report)
        if not tally.splits["train"]:
            raise ValueError("every task is held out; expected at least one to train on")
        _write_evaluation(staging / "eval", options, tally, report)
        manifest = _manifest(staging, tokenizer, encoder, options, tally)
        manifest.write(staging)
    report(f"wrote {out}")
    return manifest


def _check_sources(sources: Sequence[TaskSource]) -> None:
    twice = [name for name, n in Counter(source.name for source in sources).items() if n > 1]
    if twice:
        raise ValueError(f"task {twice[0]!r} is given twice; names must be unique")
    if all(source.group == "held_out" for source in sources):
        raise ValueError("every task is held out; expected at least one to train on")
    for source in sources:
        plain = source.name.replace("_", "").replace("-", "").replace(".", "")
        if not plain.isalnum() or not plain.isascii() or not source.name[0].isalnum():
            raise ValueError(
                f"task {source.name!r}: expected a name of letters, digits, '_', '-' and '.'"
            )
        if source.name.endswith(".exemplars"):
            raise ValueError(
                f"task {source.name!r}: expected another name; in the evaluation suite the solved "
                "problems of a task are under its name and '.exemplars'"
            )


def _make_tokenizer(
    directory: Path,
    sources: Sequence[TaskSource],
    options: BuildOptions,
    report: Callable[[str], None],
) -> PreTrainedTokenizerBase:
    if options.tokenizer is not None:
        copy_tokenizer(load_tokenizer(options.tokenizer), directory)
        report(f"tokenizer: {options.tokenizer}")
    else:
        report(f"tokenizer: training {options.vocab_size} ids on the training texts")
        trained = train_tokenizer(_tokenizer_texts(sources, options, report), options.vocab_size)
        directory.mkdir()
        write_tokenizer_files(trained, directory)
    return load_tokenizer(directory)


def _tokenizer_texts(
    sources: Sequence[TaskSource], options: BuildOptions, report: Callable[[str], None]
) -> Iterator[str]:
    def fits(prompt: str) -> bool:
        return len(prompt) <= CHARACTERS_PER_TOKEN * options.max_input_tokens

    for number, source in enumerate(sources, start=1):
        for example in islice(source.open(fits).train, TOKENIZER_SAMPLE):
            yield example.prompt
            yield example.target
        if number % REPORT_EVERY == 0 or number == len(sources):
            report(f"  texts of {number} of {len(sources)} tasks")


def _write_mixture(
    staging: Path,
    mixture: str,
    sources: Sequence[TaskSource],
    encoder: TextEncoder,
    options: BuildOptions,
    tally: _Tally,
    report: Callable[[str], None],
) -> None:
    """Shards and task tables of one mixture, task after task, for both splits."""

    def fits(prompt: str) -> bool:
        return encoder.length(prompt) <= options.max_input_tokens

    writers = {
        split: SplitWriter(staging / split / mixture, mixture, encoder, options.shard_bytes)
        for split in SPLITS
    }
    for number, source in enumerate(sources):
        if source.mixture != mixture:
            continue
        content = source.open(fits)
        counts = {}
        for split in SPLITS:
            examples = content.train if split == "train" else content.validation
            counts[split] = writers[split].write_task(number, source.name, examples, tally.shown)
        tally.dropped.update(content.dropped)
        tally.suite.append(_suite_task(source, content))
        tally.tasks.append(
            {
                "id": number,
                "name": source.name,
                "mixture": mixture,
                "group": source.group,
                **counts,
            }
        )
        report(f"  {source.name}: {counts['train']} train, {counts['validation']} validation")
    for split, writer in writers.items():
        if not writer.finish():
            continue
        tally.splits[split][mixture] = writer.totals()
        if options.webdataset:
            tars = staging / "webdataset" / split / mixture
            write_webdataset(tars, read_mds(staging / split / mixture))
        totals = writer.totals()
        report(
            f"{split}/{mixture}: {totals['examples']} examples, {totals['input_tokens']} input and "
            f"{totals['target_tokens']} target tokens"
        )


def _suite_task(source: TaskSource, content: TaskContent) -> SuiteTask:
    return SuiteTask(
        name=source.name,
        mixture=source.mixture,
        group=source.group,
        kind=content.kind,
        cot=source.cot,
        chance=content.chance,
        items=content.items,
        exemplars=content.exemplars,
    )


def _write_evaluation(
    directory: Path, options: BuildOptions, tally: _Tally, report: Callable[[str], None]
) -> None:
    """The suite, without questions that training shows, whichever task shows them and how."""
    tasks = []
    entries = {entry["name"]: entry for entry in tally.tasks}
    shown = tally.shown.among(item for task in tally.suite for item in task.items)
    for task in tally.suite:
        items = tuple(item for item in task.items if item not in shown)
        removed = len(task.items) - len(items)
        entries[task.name] |= {"eval": len(items), "eval_removed": removed}
        tally.dropped["evaluation question also in training"] += removed
        if removed:
            report(f"  {task.name}: {removed} of {len(task.items)} questions are also in training")
        if items:
            tasks.append(replace(task, items=items))
    tally.dropped = +tally.dropped
    for reason, number in sorted(tally.dropped.items()):
        report(f"left out: {number} ({reason})")
    if not tasks:
        report("eval: no questions, so no suite")
        return
    write_suite(directory, name=options.name, source=options.source, tasks=tasks)
    report(f"eval: {len(tasks)} tasks, {sum(len(task.items) for task in tasks)} questions")


def _manifest(
    staging: Path,
    tokenizer: PreTrainedTokenizerBase,
    encoder: TextEncoder,
    options: BuildOptions,
    tally: _Tally,
) -> Manifest:
    files = [*staging.glob("tokenizer/*"), *staging.glob("eval/*")]
    files += [*staging.rglob(INDEX), *staging.rglob(TABLE_FILE)]
    return Manifest(
        name=options.name,
        vocab_size=encoder.vocab_size,
        tokenizer_sha256=tokenizer_fingerprint(staging / "tokenizer"),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        max_input_tokens=options.max_input_tokens,
        max_target_tokens=options.max_target_tokens,
        seed=options.seed,
        splits={split: mixtures for split, mixtures in tally.splits.items() if mixtures},
        tasks=tuple(sorted(tally.tasks, key=lambda task: task["id"])),
        dropped=dict(sorted(tally.dropped.items())),
        files={file.relative_to(staging).as_posix(): file_sha256(file) for file in sorted(files)},
    )
