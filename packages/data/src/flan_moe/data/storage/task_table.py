"""The task table of a mixture: which samples of its shards belong to which task."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from flan_moe.data.json_types import check_rows, check_types

TABLE_FORMAT = "flan-moe-task-table"
TABLE_VERSION = 3
TABLE_FILE = "tasks.json"


@dataclass(frozen=True, kw_only=True)
class TaskEntry:
    """One task of a mixture.

    Attributes:
        id: The task's number in the whole data set, stored in every sample.
        name: The task's name.
        start: Index of its first sample in the mixture's shards; samples are stored task by task.
        count: Number of its samples.
        cap: Most samples that count towards its rate (examples-proportional mixing).
        max_input_tokens: Longest input, eos included.
        max_target_tokens: Longest target, eos included.
        types: Setting (`flan_moe.data.template_types`), then number of samples; a task's samples
            are stored setting by setting, in this order.
        input_tokens: Of all its inputs together.
        target_tokens: Of all its targets together.
        input_quantiles: `flan_moe.data.building.lengths.QUANTILES` of the lengths of its inputs.
        target_quantiles: The same of its targets.
    """

    id: int
    name: str
    start: int
    count: int
    cap: int
    max_input_tokens: int
    max_target_tokens: int
    types: Mapping[str, int]
    input_tokens: int = 0
    target_tokens: int = 0
    input_quantiles: Mapping[str, int] = field(default_factory=dict)
    target_quantiles: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TaskTable:
    """All tasks of one mixture, in stored order.

    Attributes:
        mixture: Its name.
        tasks: Tile the samples.
        input_lengths: Histogram over the mixture: the largest length of a bucket
            (`flan_moe.data.building.lengths.bucket`), then the number of inputs in it.
        target_lengths: The same of the targets.
    """

    mixture: str
    tasks: tuple[TaskEntry, ...]
    input_lengths: Mapping[str, int] = field(default_factory=dict)
    target_lengths: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that the tasks tile the samples.

        Raises:
            ValueError: There is no task, or ranges overlap, leave a gap or are empty, or
                the counts of its settings are not its samples.
        """
        if not self.tasks:
            raise ValueError(f"mixture {self.mixture!r} has no tasks")
        end = 0
        for task in self.tasks:
            if task.start != end or task.count < 1 or task.cap < 1:
                raise ValueError(
                    f"mixture {self.mixture!r}, task {task.name!r}: start {task.start}, count "
                    f"{task.count}, cap {task.cap}; expected start {end}, count and cap above 0"
                )
            if sum(task.types.values()) != task.count or min(task.types.values()) < 1:
                raise ValueError(
                    f"mixture {self.mixture!r}, task {task.name!r}: types are {dict(task.types)}; "
                    f"expected counts above 0 that sum to {task.count}"
                )
            end += task.count

    @property
    def num_samples(self) -> int:
        """Number of samples of all tasks."""
        return sum(task.count for task in self.tasks)

    def write(self, directory: Path) -> None:
        """Write ``tasks.json`` into a mixture's directory."""
        record = {"format": TABLE_FORMAT, "version": TABLE_VERSION, **asdict(self)}
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        (directory / TABLE_FILE).write_text(text, encoding="utf-8")


def read_task_table(directory: str | Path) -> TaskTable:
    """Read ``tasks.json`` of a mixture's directory.

    Raises:
        ValueError: It is missing, damaged or of another format; the message names the file.
    """
    file = Path(directory) / TABLE_FILE
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record.pop("format") != TABLE_FORMAT or record.pop("version") != TABLE_VERSION:
            raise ValueError(f"not {TABLE_FORMAT} version {TABLE_VERSION}")
        hints = {"mixture": str, "tasks": tuple[Mapping[str, Any], ...]}
        hints |= dict.fromkeys(("input_lengths", "target_lengths"), Mapping[str, int])
        check_types(record, hints)
        check_rows(record["tasks"], get_type_hints(TaskEntry), "tasks")
        tasks = tuple(TaskEntry(**task) for task in record.pop("tasks"))
        return TaskTable(tasks=tasks, **record)
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file; expected the mixture's task table") from None
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: damaged task table: {error}") from error
