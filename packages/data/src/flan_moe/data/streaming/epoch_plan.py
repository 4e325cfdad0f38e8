"""Which samples an epoch holds, for any epoch at once: a pure function of tables, mixture and seed.

The samples of a stored mixture are kept task by task, and within a task setting by setting. A run
of samples that are drawn alike (a task, or one setting of it) is a cell. A mixture gives each cell
a share; over an epoch shares become whole numbers (`flan_moe.data.mixing.quotas`); and each cell is
walked through in rounds, every round a permutation of it, on from where the epoch before stopped.
So no sample comes again before all others of its cell have come, whatever the epochs and however
the mixture changes between them.

Where a curriculum changes the mixture inside an epoch, the epoch has two segments, one after the
other, each with its own shares.

Legend: C cells, N samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flan_moe.data.mixing.quotas import Quotas
from flan_moe.data.storage.task_table import TaskTable
from flan_moe.data.streaming.permutations import permutation_keys, permuted_parts

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Cells:
    """Runs of samples that are drawn alike, all arrays (C,).

    Attributes:
        stream: Number of the stored mixture.
        task: Id of the task in the data set.
        kind: Number of the setting within the task, 0 where the cell is the whole task.
        start: First sample, counted within the stored mixture.
        count: Number of samples.
    """

    stream: NDArray[np.int64]
    task: NDArray[np.int64]
    kind: NDArray[np.int64]
    start: NDArray[np.int64]
    count: NDArray[np.int64]

    @classmethod
    def of(cls, tables: Sequence[TaskTable], *, by_setting: bool) -> Cells:
        """A cell per task, or per task and setting, in stored order."""
        rows: list[tuple[int, int, int, int, int]] = []
        for stream, table in enumerate(tables):
            for task in table.tasks:
                start = task.start
                parts = task.types.values() if by_setting else (task.count,)
                for kind, count in enumerate(parts):
                    rows.append((stream, task.id, kind, start, count))
                    start += count
        columns = np.array(rows, np.int64).T
        names = ("stream", "task", "kind", "start", "count")
        return cls(**dict(zip(names, columns, strict=True)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """Shares that hold from some sample on.

    Attributes:
        begin: Samples drawn before, since the start of training.
        shares: (C,) of all samples, sum 1.
        order: (C,) the cells such that those of one sub-mixture stand together: their sum is then
            within one sample of its exact share as well.
    """

    begin: int
    shares: NDArray[np.float64]
    order: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """A stretch of an epoch under one mixture."""

    stage: int
    begin: int
    length: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Chosen:
    """The samples of a segment, in stored order.

    Attributes:
        stream: (N,) number of the stored mixture, ascending.
        sample: (N,) within the stored mixture, ascending within a stream.
    """

    stream: NDArray[np.int64]
    sample: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class EpochPlan:
    """The epochs of a run over stored mixtures.

    Attributes:
        tables: Stored mixture, then its task table; those that no stage draws from are left out.
        cells: Of these tables.
        stages: Ascending, the first from sample 0.
        epoch_size: Samples in an epoch, over all devices.
        description: What was asked for, as text; part of a run's fingerprint.
    """

    tables: Mapping[str, TaskTable]
    cells: Cells
    stages: tuple[Stage, ...]
    epoch_size: int
    description: str

    def segments(self, epoch: int) -> tuple[Segment, ...]:
        """The stretches of an epoch, in order; they add up to the epoch."""
        first, last = epoch * self.epoch_size, (epoch + 1) * self.epoch_size
        found = []
        for number in range(len(self.stages)):
            begin, end = self._reach(number, first, last)
            if begin < end:
                found.append(Segment(stage=number, begin=begin - first, length=end - begin))
        return tuple(found)

    def quotas(self, epoch: int, segment: Segment, seed: int) -> NDArray[np.int64]:
        """Samples of each cell in a segment of an epoch, (C,)."""
        return self._between(segment.stage, segment.length, epoch, epoch + 1, seed)

    def used_before(self, epoch: int, seed: int) -> NDArray[np.int64]:
        """Samples of each cell in all earlier epochs together, (C,).

        In closed form: pieces of stages that begin or end within an epoch one by one, the whole
        epochs between them by their number.
        """
        used_C = np.zeros(len(self.cells.count), np.int64)
        size = self.epoch_size
        for number in range(len(self.stages)):
            begin, end = self._reach(number, 0, epoch * size)
            if begin >= end:
                continue
            head, tail = -(-begin // size), end // size
            if begin < head * size:  # starts within an epoch, and may end in the same
                length = min(head * size, end) - begin
                used_C += self._between(number, length, head - 1, head, seed)
            if head < tail:
                used_C += self._between(number, size, head, tail, seed)
            if tail >= head and tail * size < end:
                used_C += self._between(number, end - tail * size, tail, tail + 1, seed)
        return used_C

    def choose(self, epoch: int, seed: int) -> tuple[tuple[Segment, Chosen], ...]:
        """The samples of an epoch, segment by segment."""
        used_C = self.used_before(epoch, seed)
        parts = []
        for segment in self.segments(epoch):
            quota_C = self.quotas(epoch, segment, seed)
            parts.append((segment, self._walk(used_C, quota_C, seed)))
            used_C = used_C + quota_C
        return tuple(parts)

    def choose_first(self, seed: int) -> tuple[Segment, Chosen]:
        """The first samples of each cell in stored order: an evaluation set, always the same."""
        segment = Segment(stage=0, begin=0, length=self.epoch_size)
        quota_C = self.quotas(0, segment, seed)
        cells = self.cells
        cell_N = np.repeat(np.arange(len(quota_C)), quota_C)
        place_N = np.arange(len(cell_N)) - np.repeat(np.cumsum(quota_C) - quota_C, quota_C)
        return segment, self._chosen(cell_N, place_N % cells.count[cell_N])

    def _reach(self, number: int, first: int, last: int) -> tuple[int, int]:
        """The part of a stage within some samples of the run."""
        following = self.stages[number + 1 : number + 2]
        end = min(last, following[0].begin) if following else last
        return max(first, self.stages[number].begin), end

    def _between(
        self, stage: int, length: int, begin: int, end: int, seed: int
    ) -> NDArray[np.int64]:
        order_C = self.stages[stage].order
        quotas = Quotas(self.stages[stage].shares[order_C], length, seed=(seed, stage))
        counts_C = np.empty(len(order_C), np.int64)
        counts_C[order_C] = quotas.between(begin, end)
        return counts_C

    def _walk(self, used_C: NDArray[np.int64], quota_C: NDArray[np.int64], seed: int) -> Chosen:
        cells = self.cells
        drawn_D = np.flatnonzero(quota_C)
        count_D, begin_D = cells.count[drawn_D], used_C[drawn_D]
        end_D = begin_D + quota_C[drawn_D]
        # A part for every round that a cell is in.
        rounds_D = (end_D - 1) // count_D - begin_D // count_D + 1
        cell_G = np.repeat(drawn_D, rounds_D)
        round_G = np.arange(len(cell_G)) - np.repeat(np.cumsum(rounds_D) - rounds_D, rounds_D)
        round_G += np.repeat(begin_D // count_D, rounds_D)
        count_G = cells.count[cell_G]
        offset_G = round_G * count_G
        keys_G = permutation_keys(
            seed, cells.stream[cell_G], cells.task[cell_G], cells.kind[cell_G], round_G
        )
        part_N, element_N = permuted_parts(
            count_G,
            keys_G,
            np.maximum(np.repeat(begin_D, rounds_D) - offset_G, 0),
            np.minimum(np.repeat(end_D, rounds_D) - offset_G, count_G),
        )
        return self._chosen(cell_G[part_N], element_N)

    def _chosen(self, cell_N: NDArray[np.int64], element_N: NDArray[np.int64]) -> Chosen:
        ends = np.cumsum([table.num_samples for table in self.tables.values()])
        base = np.concatenate([[0], ends[:-1]])
        stream_N = self.cells.stream[cell_N]
        # One number over all streams: sorting it sorts by stream and sample.
        number_N = np.sort(base[stream_N] + self.cells.start[cell_N] + element_N)
        stream_N = np.searchsorted(ends, number_N, side="right")
        return Chosen(stream=stream_N, sample=number_N - base[stream_N])
