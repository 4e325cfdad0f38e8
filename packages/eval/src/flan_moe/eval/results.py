"""The outcome of an evaluation, and its JSON form.

``results.json`` holds aggregates only; the answers themselves are in the sample logs beside it. All
scores are proportions in [0, 1], normalised scores are percentages of the way from guessing (0) to
perfect (100).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from flan_moe.eval.files import write_text
from flan_moe.eval.statistics import Interval
from flan_moe.eval.strict_json import Checked, parse_json
from flan_moe.eval.suite import Group, Kind, Mode

RESULTS_FORMAT = "flan-moe-eval-results"
RESULTS_VERSION = 2

Method = Literal["generate", "loglikelihood"]


class ResultsError(ValueError):
    """A results file that cannot be used; the message names the file and the key."""


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """Score of one task with a number of shots, in one mode.

    Attributes:
        task: Name of the task.
        mixture: Training mixture in whose manner the task is written.
        group: As in :class:`flan_moe.eval.Task`.
        kind: "generate" or "multiple_choice".
        mode: "direct" or "cot".
        shots: Exemplars per prompt asked for.
        method: Whether answers were generated or options scored by log-likelihood.
        content_hash: Digest of the task's items and exemplars.
        n: Number of items.
        score: Exact match, or accuracy of the likeliest option.
        standard_error: Of the score.
        interval: 95 % Wilson interval of the score.
        chance: Score of guessing.
        normalized: ``100 (score - chance) / (1 - chance)``, not clipped.
        secondary: Further means by name: "strict_exact_match" (generated text equal to a target,
            outer blanks aside), "per_token_accuracy" (options by log-probability per token).
        parse_failures: Items whose output held no answer in the expected form.
        exemplars_dropped: Exemplars left out of prompts because they did not fit.
        prompts_truncated: Prompts that were too long even without exemplars.
        mean_output_tokens: Mean length of the generated text, where the model can count.
    """

    task: str
    mixture: str
    group: Group
    kind: Kind
    mode: Mode
    shots: int
    method: Method
    content_hash: str
    n: int
    score: float
    standard_error: float
    interval: Interval
    chance: float
    normalized: float
    secondary: Mapping[str, float]
    parse_failures: int
    exemplars_dropped: int
    prompts_truncated: int
    mean_output_tokens: float | None


@dataclass(frozen=True, kw_only=True)
class GroupScore:
    """Macro mean (tasks weigh the same) of a group's tasks at one setting.

    Attributes:
        group: As in :class:`flan_moe.eval.Task`.
        mode: "direct" or "cot".
        shots: Exemplars per prompt.
        tasks: Names of the tasks averaged; a chain-of-thought mean covers only tasks that have one.
        score: Mean of the tasks' scores.
        over_items: 95 % interval for other questions of the same tasks.
        over_tasks: 95 % interval for other tasks of the same kind; None for a single task.
        chance: Mean of the tasks' scores of guessing.
        normalized: Mean of the tasks' chance-normalised scores.
        normalized_over_items: 95 % interval of ``normalized`` for other questions.
        normalized_over_tasks: The same for other tasks; None for a single task.
        parse_failure_rate: Mean of the tasks' shares of parse failures.
    """

    group: Group
    mode: Mode
    shots: int
    tasks: tuple[str, ...]
    score: float
    over_items: Interval
    over_tasks: Interval | None
    chance: float
    normalized: float
    normalized_over_items: Interval
    normalized_over_tasks: Interval | None
    parse_failure_rate: float


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything a reader needs to trust and compare the numbers.

    Attributes:
        suite: Name of the suite.
        suite_hash: Digest of its content.
        model: Name or path of the model.
        fingerprint: Digest of weights, tokenizer and settings; None when the model has none.
        decoding: Settings of greedy decoding, such as bounds on the length.
        limit: Items per task at most; None for all.
        environment: Versions of Python and of the packages that decide numbers.
        tasks: Scores by task, shots and mode.
        groups: Means over tasks.
    """

    suite: str
    suite_hash: str
    model: str
    fingerprint: str | None
    decoding: Mapping[str, int]
    limit: int | None
    environment: Mapping[str, str]
    tasks: tuple[TaskScore, ...]
    groups: tuple[GroupScore, ...]

    def to_json(self) -> str:
        """The versioned JSON text, the same for equal results."""
        record = {"format": RESULTS_FORMAT, "version": RESULTS_VERSION, **asdict(self)}
        return json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "results") -> Results:
        """Read what :meth:`to_json` wrote.

        Args:
            text: JSON.
            where: Name of the source, for errors.

        Raises:
            ResultsError: Unknown format or version, unknown or missing key, wrong type.
        """
        try:
            return _read(Checked.of(parse_json(text.encode(), where), where))
        except ValueError as error:
            raise ResultsError(str(error)) from None

    def save(self, path: str | Path) -> None:
        """Write the JSON to ``path``, whole or not at all."""
        write_text(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Results:
        """Read a file, or ``results.json`` in a folder.

        Raises:
            FileNotFoundError: There is no such file.
            ResultsError: It is not a results file this version can read.
        """
        path = Path(path)
        file = path / "results.json" if path.is_dir() else path
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file; expected the results of an evaluation")
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ResultsError(f"{file}: not UTF-8 at byte {error.start}") from None
        return cls.from_json(text, str(file))


def _read(record: Checked) -> Results:
    record.literal("format", RESULTS_FORMAT)
    record.literal("version", RESULTS_VERSION)
    record.only_keys("format", "version", *_names(Results))
    decoding, environment = record.mapping("decoding"), record.mapping("environment")
    return Results(
        suite=record.text("suite"),
        suite_hash=record.text("suite_hash"),
        model=record.text("model", empty=True),
        fingerprint=record.optional("fingerprint", record.text),
        decoding={key: decoding.integer(key) for key in decoding.record},
        limit=record.optional("limit", record.integer),
        environment={key: environment.text(key) for key in environment.record},
        tasks=tuple(_read_task(entry) for entry in record.items("tasks")),
        groups=tuple(_read_group(entry) for entry in record.items("groups")),
    )


def _read_task(entry: Checked) -> TaskScore:
    entry.only_keys(*_names(TaskScore))
    secondary = entry.mapping("secondary")
    n, failures = entry.integer("n"), entry.integer("parse_failures")
    if not max(1, failures) <= n:
        raise ValueError(
            f"{entry.where}: n: {n}; expected at least one item, and at least the {failures} "
            "parse failures"
        )
    score, chance = entry.number("score"), entry.number("chance")
    if not 0.0 <= score <= 1.0:
        raise ValueError(f"{entry.where}: score: {score}; expected a number in [0, 1]")
    if not 0.0 <= chance < 1.0:
        raise ValueError(f"{entry.where}: chance: {chance}; expected a number in [0, 1)")
    return TaskScore(
        task=entry.name("task"),
        mixture=entry.text("mixture"),
        group=entry.choice("group", get_args(Group)),
        kind=entry.choice("kind", get_args(Kind)),
        mode=entry.choice("mode", get_args(Mode)),
        shots=entry.integer("shots"),
        method=entry.choice("method", get_args(Method)),
        content_hash=entry.text("content_hash"),
        n=n,
        score=score,
        standard_error=entry.number("standard_error"),
        interval=_interval(entry, "interval"),
        chance=chance,
        normalized=entry.number("normalized"),
        secondary={key: secondary.number(key) for key in secondary.record},
        parse_failures=failures,
        exemplars_dropped=entry.integer("exemplars_dropped"),
        prompts_truncated=entry.integer("prompts_truncated"),
        mean_output_tokens=entry.optional("mean_output_tokens", entry.number),
    )


def _read_group(entry: Checked) -> GroupScore:
    entry.only_keys(*_names(GroupScore))

    def interval_or_none(key: str) -> Interval | None:
        return entry.optional(key, lambda key: _interval(entry, key))

    return GroupScore(
        group=entry.choice("group", get_args(Group)),
        mode=entry.choice("mode", get_args(Mode)),
        shots=entry.integer("shots"),
        tasks=entry.texts("tasks"),
        score=entry.number("score"),
        over_items=_interval(entry, "over_items"),
        over_tasks=interval_or_none("over_tasks"),
        chance=entry.number("chance"),
        normalized=entry.number("normalized"),
        normalized_over_items=_interval(entry, "normalized_over_items"),
        normalized_over_tasks=interval_or_none("normalized_over_tasks"),
        parse_failure_rate=entry.number("parse_failure_rate"),
    )


def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def _interval(entry: Checked, key: str) -> Interval:
    nested = entry.mapping(key)
    nested.only_keys("low", "high")
    return Interval(nested.number("low"), nested.number("high"))
