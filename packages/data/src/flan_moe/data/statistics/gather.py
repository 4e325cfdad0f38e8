"""Gathers the statistics of one split of a data directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flan_moe.data.mixing.spec import MixtureSpec
from flan_moe.data.packing import TargetBudget, assign_rows, choose_target_budget, pack_windows
from flan_moe.data.storage.manifest import Manifest, open_with_tables
from flan_moe.data.storage.stored import StoredSamples
from flan_moe.data.storage.task_table import TaskTable
from flan_moe.data.template_types import TEMPLATE_TYPES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flan_moe.data.mixing.shares import TaskShare

QUANTILES = (0.05, 0.5, 0.95, 0.99, 1.0)
PACKED_SAMPLES = 16_384  # drawn to see how they pack
BATCH = 256  # raw examples, of the packer that keeps nothing between batches
_STEPS = 2  # buckets per doubling of the length


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Token lengths of some samples.

    Attributes:
        count: Number of samples.
        inputs: `QUANTILES` of the lengths of their inputs.
        targets: The same of their targets.
    """

    count: int
    inputs: tuple[int, ...]
    targets: tuple[int, ...]

    @classmethod
    def of(cls, length_N2: NDArray[np.int64]) -> Lengths:
        """Of samples given by the lengths of input and target."""
        quantiles = np.quantile(length_N2, QUANTILES, axis=0, method="higher").astype(int)
        inputs, targets = quantiles.T.tolist()
        return cls(count=len(length_N2), inputs=tuple(inputs), targets=tuple(targets))


@dataclass(frozen=True, kw_only=True)
class MixtureStatistics:
    """Of one stored mixture.

    Attributes:
        name: Of the mixture.
        total: All its samples.
        by_type: Setting, then its samples.
        input_histogram: Upper end of a bucket of lengths, then samples in it; without a gap.
        target_histogram: The same of the targets.
    """

    name: str
    total: Lengths
    by_type: Mapping[str, Lengths]
    input_histogram: Mapping[int, int]
    target_histogram: Mapping[int, int]


@dataclass(frozen=True, kw_only=True)
class TaskStatistics:
    """Of one task.

    Attributes:
        name: Of the task.
        mixture: Stored mixture.
        count: Number of its samples.
        share: Of all stored samples.
        explained: Its share under the specification; None without one.
        mean_tokens: Of its inputs and targets.
    """

    name: str
    mixture: str
    count: int
    share: float
    explained: float | None
    mean_tokens: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class PackingForecast:
    """How the mixture packs, tried on samples as training draws them.

    Attributes:
        samples: How many were tried.
        max_input_tokens: Encoder tokens of a row.
        budget: The decoder tokens of a row that go with it, and what to expect.
        batches: Share of encoder and decoder rows filled by packing batch by batch.
        windows: The same by packing beforehand.
    """

    samples: int
    max_input_tokens: int
    budget: TargetBudget
    batches: tuple[float, float]
    windows: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Of one split of a data directory.

    Attributes:
        name: Of the data.
        split: Which.
        spec: Name of the mixture that shares were explained for, or None.
        mixtures: In stored order.
        tasks: Largest share first, of the specification's where there is one.
        packing: How it packs.
    """

    name: str
    split: str
    spec: str | None
    mixtures: tuple[MixtureStatistics, ...]
    tasks: tuple[TaskStatistics, ...]
    packing: PackingForecast


def gather_statistics(
    directory: str | Path,
    *,
    split: str = "train",
    spec: MixtureSpec | None = None,
    max_input_tokens: int | None = None,
    seed: int = 0,
) -> Statistics:
    """Gather them; lengths are read from the heads of the stored samples.

    Args:
        directory: Built by ``flan-moe-data``.
        split: Of it.
        spec: Whose shares to tell beside those stored, and to draw by for the packing.
        max_input_tokens: Encoder tokens of a row; None takes the budget of the directory.
        seed: Of the draw.

    Raises:
        ValueError: The directory is damaged or an argument does not fit; names file or key.
    """
    directory = Path(directory)
    if max_input_tokens is not None and max_input_tokens < 1:
        raise ValueError(f"max_input_tokens is {max_input_tokens}; expected a positive number")
    manifest, all_tables = open_with_tables(directory)
    if split not in all_tables:
        raise ValueError(f"split is {split!r}; {directory} has {sorted(all_tables)}")
    tables = all_tables[split]
    explained = {} if spec is None else _explained(spec, tables)
    total = sum(table.num_samples for table in tables.values())
    mixtures, tasks = [], []
    for name, table in tables.items():
        length_N2 = StoredSamples(directory / split / name).lengths()
        mixtures.append(_mixture(table, length_N2))
        for task in table.tasks:
            mean = length_N2[task.start : task.start + task.count].mean(0)
            share = explained.get(task.name)
            tasks.append(
                TaskStatistics(
                    name=task.name,
                    mixture=name,
                    count=task.count,
                    share=task.count / total,
                    explained=None if spec is None else share.share if share else 0.0,
                    mean_tokens=(float(mean[0]), float(mean[1])),
                )
            )
    tasks.sort(key=lambda task: (-(task.share if spec is None else task.explained), task.name))
    return Statistics(
        name=manifest.name,
        split=split,
        spec=None if spec is None else spec.name,
        mixtures=tuple(mixtures),
        tasks=tuple(tasks),
        packing=_packing(directory, manifest, split, spec, max_input_tokens, seed),
    )


def bucket_ends(longest: int) -> list[int]:
    """Upper ends of the buckets that lengths up to ``longest`` are counted in."""
    ends, power = [1], 1
    while ends[-1] < longest:
        end = round(2 ** (power / _STEPS))
        ends += [end] if end > ends[-1] else []
        power += 1
    return ends


def _explained(spec: MixtureSpec, tables: Mapping[str, TaskTable]) -> dict[str, TaskShare]:
    from flan_moe.data.mixing.apply import apply_mixture
    from flan_moe.data.mixing.shares import TaskSize

    sizes = [
        TaskSize(name=task.name, mixture=name, count=task.count, types=task.types)
        for name, table in tables.items()
        for task in table.tasks
    ]
    return {share.task.name: share for share in apply_mixture(spec, sizes)}


def _mixture(table: TaskTable, length_N2: NDArray[np.int64]) -> MixtureStatistics:
    runs = [run for task in table.tasks for run in task.types.items()]
    kind_N = np.repeat([kind for kind, _ in runs], [count for _, count in runs])
    found = set(kind_N.tolist())
    kinds = [*(k for k in TEMPLATE_TYPES if k in found), *sorted(found - set(TEMPLATE_TYPES))]
    return MixtureStatistics(
        name=table.mixture,
        total=Lengths.of(length_N2),
        by_type={kind: Lengths.of(length_N2[kind_N == kind]) for kind in kinds},
        input_histogram=_histogram(length_N2[:, 0]),
        target_histogram=_histogram(length_N2[:, 1]),
    )


def _histogram(length_N: NDArray[np.int64]) -> dict[int, int]:
    ends = bucket_ends(int(length_N.max()))
    counts = np.bincount(np.searchsorted(ends, length_N), minlength=len(ends))
    return dict(zip(ends, counts.tolist(), strict=True))


def _packing(
    directory: Path,
    manifest: Manifest,
    split: str,
    spec: MixtureSpec | None,
    max_input_tokens: int | None,
    seed: int,
) -> PackingForecast:
    from flan_moe.data.offline.draw import MixtureDraw

    draw = MixtureDraw.open(directory, split=split, mixture=spec, verify=False)
    length_N2 = draw.lengths[draw.epoch(0, seed)[:PACKED_SAMPLES]]
    inputs = manifest.max_input_tokens if max_input_tokens is None else max_input_tokens
    chosen = choose_target_budget(length_N2, inputs)
    budget = (inputs, chosen.max_target_tokens)
    kept_N2 = length_N2[(length_N2 <= budget).all(1)]
    batches = sum(
        len(assign_rows(kept_N2[begin : begin + BATCH], budget))
        for begin in range(0, len(kept_N2), BATCH)
    )
    windows = sum(1 for _ in pack_windows(kept_N2, budget))
    tokens_2 = kept_N2.sum(0)

    def fill(rows: int) -> tuple[float, float]:
        return float(tokens_2[0] / (rows * budget[0])), float(tokens_2[1] / (rows * budget[1]))

    return PackingForecast(
        samples=len(length_N2),
        max_input_tokens=inputs,
        budget=chosen,
        batches=fill(batches),
        windows=fill(windows),
    )
