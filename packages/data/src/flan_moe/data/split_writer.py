"""Writes one split of one mixture: tokenised samples, task after task, and their table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from flan_moe.data.example import Example
from flan_moe.data.shards import Sample, mds_writer
from flan_moe.data.shown import ShownProblems
from flan_moe.data.task_source import DEFAULT_CAP, MIXTURE_CAPS
from flan_moe.data.task_table import TaskEntry, TaskTable
from flan_moe.data.template_types import TEMPLATE_TYPES, template_type
from flan_moe.data.tokenizer import TextEncoder

if TYPE_CHECKING:
    from streaming import MDSWriter

BATCH = 1024  # texts per tokenizer call


class SplitWriter:
    """Collects the tasks of one split of one mixture.

    Args:
        directory: Where the shards go; made when the first sample comes.
        mixture: Name of the mixture.
        encoder: Texts to ids.
        shard_bytes: Largest size of a shard.
    """

    def __init__(
        self, directory: Path, mixture: str, encoder: TextEncoder, shard_bytes: int
    ) -> None:
        self.directory = directory
        self.mixture = mixture
        self.encoder = encoder
        self.shard_bytes = shard_bytes
        self.entries: list[TaskEntry] = []
        self.input_tokens = 0
        self.target_tokens = 0
        self._writer: MDSWriter | None = None

    def write_task(
        self, number: int, name: str, examples: Iterable[Example], shown: ShownProblems
    ) -> int:
        """Write all examples of a task.

        Args:
            number: The task's id.
            name: The task's name.
            examples: Stored setting by setting, otherwise in this order.
            shown: Receives every example.

        Returns:
            The number of examples.
        """
        longest_input = longest_target = 0
        by_type: dict[str, list[Sample]] = {kind: [] for kind in TEMPLATE_TYPES}
        for sample in self._samples(number, examples, shown):
            by_type[template_type(sample["template"])].append(sample)
        types = {kind: len(samples) for kind, samples in by_type.items() if samples}
        for sample in chain.from_iterable(by_type.values()):
            if self._writer is None:
                self._writer = mds_writer(
                    self.directory, dtype=self.encoder.dtype, shard_bytes=self.shard_bytes
                )
            self._writer.write(sample)
            longest_input = max(longest_input, len(sample["input_ids"]))
            longest_target = max(longest_target, len(sample["labels"]))
            self.input_tokens += len(sample["input_ids"])
            self.target_tokens += len(sample["labels"])
        count = sum(types.values())
        if count:
            entry = TaskEntry(
                id=number,
                name=name,
                start=sum(entry.count for entry in self.entries),
                count=count,
                cap=MIXTURE_CAPS.get(self.mixture, DEFAULT_CAP),
                max_input_tokens=longest_input,
                max_target_tokens=longest_target,
                types=types,
            )
            self.entries.append(entry)
        return count

    def finish(self) -> bool:
        """Write the index and the task table; False when there was no sample at all."""
        if self._writer is None:
            return False
        self._writer.finish()
        TaskTable(mixture=self.mixture, tasks=tuple(self.entries)).write(self.directory)
        return True

    def totals(self) -> dict[str, int]:
        """Numbers of examples and tokens."""
        return {
            "examples": sum(entry.count for entry in self.entries),
            "input_tokens": self.input_tokens,
            "target_tokens": self.target_tokens,
        }

    def _samples(
        self, number: int, examples: Iterable[Example], shown: ShownProblems
    ) -> Iterator[Sample]:
        iterator = iter(examples)
        while batch := list(islice(iterator, BATCH)):
            inputs = self.encoder.encode([example.prompt for example in batch])
            targets = self.encoder.encode([example.target for example in batch])
            for example, input_ids, labels in zip(batch, inputs, targets, strict=True):
                shown.add(example)
                yield {
                    "input_ids": input_ids,
                    "labels": labels,
                    "task": number,
                    "template": example.template,
                }
