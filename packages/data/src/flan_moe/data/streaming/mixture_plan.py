"""From what is asked (weights, a mixture, a curriculum) to the epochs of a split."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from streaming.base.world import World

from flan_moe.data.mixing.apply import apply_mixture
from flan_moe.data.mixing.curriculum import Curriculum
from flan_moe.data.mixing.load import load_mixture
from flan_moe.data.mixing.rates import mixture_weights, proportional_rates, whole_shares
from flan_moe.data.mixing.shares import TaskShare, TaskSize
from flan_moe.data.mixing.spec import MixtureSpec
from flan_moe.data.storage.manifest import Manifest
from flan_moe.data.storage.task_table import TaskTable, read_task_table
from flan_moe.data.streaming.epoch_plan import Cells, EpochPlan, Stage

LARGEST_EPOCH = 10**9

Mixture = MixtureSpec | Curriculum | str | Path
"""What to mix: a specification, a curriculum of them, the name of a preset or a YAML file."""


def plan_epoch(
    path: Path,
    manifest: Manifest,
    split: str,
    weights: Mapping[str, float] | None,
    epoch_size: int | None,
    *,
    shuffle: bool,
    mixture: Mixture | None = None,
    tables: Mapping[str, TaskTable] | None = None,
) -> EpochPlan:
    """How many samples of what an epoch holds; arguments of `build_mixture_dataset`.

    ``tables`` are the task tables of the split, where they have been read already.

    Raises:
        ValueError: A task table is damaged, or an argument does not fit; names file or key.
    """
    if split not in manifest.splits:
        raise ValueError(f"split is {split!r}; {path} has {sorted(manifest.splits)}")
    if tables is None:
        tables = {name: read_task_table(path / split / name) for name in manifest.splits[split]}
    if mixture is None:
        return _weighted(tables, manifest, weights, epoch_size, shuffle)
    if weights is not None:
        raise ValueError("weights and mixture are both given; expected one of them")
    if isinstance(mixture, (str, Path)):
        mixture = load_mixture(mixture)
    curriculum = mixture if isinstance(mixture, Curriculum) else Curriculum(stages={0: mixture})
    if not shuffle and len(curriculum.stages) > 1:
        raise ValueError(
            "mixture is a curriculum and shuffle is off; expected one mixture, as without "
            "shuffling every epoch is the same"
        )
    return _specified(tables, curriculum, epoch_size, shuffle)


def _weighted(
    tables: Mapping[str, TaskTable],
    manifest: Manifest,
    weights: Mapping[str, float] | None,
    epoch_size: int | None,
    shuffle: bool,
) -> EpochPlan:
    """A cell per task, rates by the caps of the task tables."""
    sizes = {
        name: sum(min(task.count, task.cap) for task in table.tasks)
        for name, table in tables.items()
    }
    if weights is not None:
        # A mixture of the directory that this split happens to lack may be left out by name.
        known = {task["mixture"] for task in manifest.tasks}
        weights = {n: w for n, w in weights.items() if w or n in sizes or n not in known}
    shares = mixture_weights(sizes, weights)
    total = natural_epoch(epoch_size, sum(sizes[name] for name in shares), shuffle)
    numbers = whole_shares(np.array(list(shares.values())), total).tolist()
    for name, number in zip(shares, numbers, strict=True):
        if number == 0:
            raise ValueError(
                f"epoch_size is {total}; mixture {name!r} with share {shares[name]:.2g} would get "
                "no sample"
            )
    parts = []
    for name, number in zip(shares, numbers, strict=True):
        tasks = tables[name].tasks
        rates_T = proportional_rates([t.count for t in tasks], [t.cap for t in tasks])
        parts.append(number / total * rates_T)
    shares_C = np.concatenate(parts)
    chosen = {name: tables[name] for name in shares}
    return EpochPlan(
        tables=chosen,
        cells=Cells.of(tuple(chosen.values()), by_setting=False),
        stages=(Stage(begin=0, shares=shares_C, order=np.arange(len(shares_C))),),
        epoch_size=total,
        description=json.dumps(dict(zip(shares, numbers, strict=True))),
    )


def _specified(
    tables: Mapping[str, TaskTable],
    curriculum: Curriculum,
    epoch_size: int | None,
    shuffle: bool,
) -> EpochPlan:
    """A cell per task and setting, shares by the specifications."""
    sizes = [
        TaskSize(name=task.name, mixture=name, count=task.count, types=task.types)
        for name, table in tables.items()
        for task in table.tasks
    ]
    by_stage = [apply_mixture(spec, sizes) for spec in curriculum.stages.values()]
    wanted = {share.task.mixture for shares in by_stage for share in shares if share.share > 0}
    chosen = {name: table for name, table in tables.items() if name in wanted}
    stages = []
    for (begin, spec), shares in zip(curriculum.stages.items(), by_stage, strict=True):
        rows = [share for share in shares if share.task.mixture in wanted]
        homes = {name: number for number, name in enumerate(spec.sub_mixtures)}
        cells = [
            (homes.get(share.sub_mixture or "", len(homes)), share.types.get(kind, 0.0))
            for share in rows
            for kind in share.task.types
        ]
        home_C, share_C = (np.array(column) for column in zip(*cells, strict=True))
        order_C = np.argsort(home_C, kind="stable")
        stages.append(Stage(begin=begin, shares=share_C / share_C.sum(), order=order_C))
    natural = _natural_size(next(iter(curriculum.stages.values())), by_stage[0])
    described = [
        [begin, asdict(spec)["sub_mixtures"], [s.task.name for s in shares if s.held_out]]
        for (begin, spec), shares in zip(curriculum.stages.items(), by_stage, strict=True)
    ]
    return EpochPlan(
        tables=chosen,
        cells=Cells.of(tuple(chosen.values()), by_setting=True),
        stages=tuple(stages),
        epoch_size=natural_epoch(epoch_size, natural, shuffle),
        description=json.dumps(described, sort_keys=True),
    )


def _natural_size(spec: MixtureSpec, shares: Iterable[TaskShare]) -> int:
    """Sum of ``min(count, cap)`` over the tasks that get a share."""
    total = 0
    for share in shares:
        if share.share > 0 and share.sub_mixture is not None:
            cap = spec.sub_mixtures[share.sub_mixture].cap
            wanted = sum(n for kind, n in share.task.types.items() if share.types.get(kind, 0) > 0)
            total += wanted if cap is None else min(wanted, cap)
    return total


def natural_epoch(asked: int | None, natural: int, shuffle: bool) -> int:
    """Samples in an epoch; with shuffling the same number on every rank.

    Otherwise streaming repeats samples to even out the ranks, which `MixtureDataset` rules out for
    training; for an evaluation set it is the lesser evil.
    """
    ranks = World.detect().num_ranks
    if asked is None:
        return natural + (-natural % ranks if shuffle else 0)
    if asked > LARGEST_EPOCH:
        raise ValueError(
            f"epoch_size is {asked}; expected at most {LARGEST_EPOCH}: the order of an epoch is "
            "held in memory"
        )
    if shuffle and asked % ranks:
        raise ValueError(f"epoch_size is {asked}; expected a multiple of the {ranks} ranks")
    return asked
