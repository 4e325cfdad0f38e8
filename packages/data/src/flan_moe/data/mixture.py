"""A mixture of many tasks as one mosaicml-streaming dataset.

One stream per mixture; which of its samples an epoch holds is decided per task, here. Shuffling,
partitioning over ranks and workers, and resuming are left to streaming.
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from streaming import Stream, StreamingDataset
from streaming.base.distributed import maybe_init_dist
from streaming.base.world import World
from torch import distributed

from flan_moe.data.manifest import Manifest, open_data_directory
from flan_moe.data.mixing.rates import (
    epoch_quotas,
    mixture_weights,
    proportional_rates,
    whole_shares,
)
from flan_moe.data.shared_memory import (
    belongs,
    construction,
    discard_run_state,
    hold,
    reclaim,
    recorded,
    release,
    release_prefix,
)
from flan_moe.data.task_table import TaskTable, read_task_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

FINGERPRINT_KEY = "mixture_fingerprint"
LARGEST_EPOCH = 10**9


class MixtureDataset(StreamingDataset):
    """Samples of several mixtures at examples-proportional rates.

    Built by `build_mixture_dataset`. A sample is a dict with ``input_ids``, ``labels``, ``task``
    and ``template``.

    With ``shuffle``, epochs walk each task through an endless chain of random permutations of its
    samples: none comes again, in whatever epoch, before all others of its task have come. Without,
    every epoch is the same first samples of each task in stored order.

    The order is a function of seed, epoch and batch size: the number of workers does not change it.

    Args:
        tables: The task table of each mixture, in the order of ``directories``.
        directories: The MDS directory of each mixture.
        choose: Samples of each mixture in an epoch.
        **kwargs: Passed to `StreamingDataset`.
    """

    def __init__(
        self,
        *,
        tables: tuple[TaskTable, ...],
        directories: tuple[Path, ...],
        choose: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        self.tables = tables
        self.choose = choose
        self.fingerprint = _fingerprint(tables, directories, choose)
        streams = [
            Stream(local=str(directory), choose=number)
            for directory, number in zip(directories, choose, strict=True)
        ]
        leader = World.detect().is_local_leader
        ours = maybe_init_dist()
        with construction(leader=leader):
            if leader:
                reclaim(str(directory.absolute()) for directory in directories)
            if distributed.is_available() and distributed.is_initialized():
                distributed.barrier()  # nobody looks for a prefix before the leader has the lock
            # A cache limit would delete shards that exist nowhere else: streaming's #988.
            with recorded() as opened:
                super().__init__(streams=streams, cache_limit=None, **kwargs)
            prefix, held = self._shm_prefix_int, None
            if leader:
                discard_run_state(prefix)
                held = hold(prefix)
        if ours:
            distributed.destroy_process_group()
        self._blocks = [block for block in opened if belongs(block, prefix)]
        release([block for block in opened if not belongs(block, prefix)])
        self._finalizer = weakref.finalize(
            self, release_prefix, prefix, self._blocks, held, owner=os.getpid()
        )
        self._finalizer.atexit = False  # what lives until then is left to streaming

    def __getstate__(self) -> dict[str, Any]:
        """Leave the shared memory to the process that made it."""
        ours = ("_blocks", "_finalizer")
        return {key: value for key, value in self.__dict__.items() if key not in ours}

    def close(self) -> None:
        """Free the shared memory now, not when nothing refers to the dataset any more.

        The dataset cannot be used afterwards; its length and tables remain.
        """
        if hasattr(self, "_iterator"):
            self._iterator.exit()
        self._finalizer()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The samples of this rank and worker.

        Where iteration is given up half-way, streaming's threads would wait for it, and keep the
        dataset alive, until the process ends; here they are told.
        """
        mine = None
        try:
            for sample in super().__iter__():
                mine = mine or self._iterator
                yield sample
        finally:
            if mine is not None:
                mine.non_blocking_exit()

    def quotas(self, stream_id: int, epoch: int) -> NDArray[np.int64]:
        """Samples of each task of one mixture in an epoch, (T,), in the order of its table."""
        tasks = self.tables[stream_id].tasks
        rates_T = proportional_rates([t.count for t in tasks], [t.cap for t in tasks])
        seed = self.shuffle_seed + stream_id
        return epoch_quotas(rates_T, self.choose[stream_id], epoch=epoch, seed=seed)

    def resample_streams(
        self, epoch: int, stream_id: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Choose the epoch's samples; called by streaming.

        Args:
            epoch: Which epoch.
            stream_id: Only this stream, or all of them.

        Returns:
            The number of chosen samples in each shard that has any (the units that streaming
            shuffles), and the sample ids, ascending within a stream.
        """
        if not self.shuffle:
            epoch = 0  # an evaluation set must not drift from epoch to epoch
        units, ids = [], []
        for stream in range(self.num_streams) if stream_id is None else [stream_id]:
            chosen = np.sort(self._chosen(stream, epoch)) + self.sample_offset_per_stream[stream]
            shard = np.searchsorted(self.sample_offset_per_shard, chosen, side="right") - 1
            units.append(np.unique(shard, return_counts=True)[1])
            ids.append(chosen)
        return np.concatenate(units).astype(np.int64), np.concatenate(ids).astype(np.int64)

    def _chosen(self, stream: int, epoch: int) -> NDArray[np.int64]:
        """Ids within the stream; a task with more quota than samples repeats some."""
        quotas = [self.quotas(stream, e) for e in range(epoch + 1)]
        before_T = np.sum(quotas[:-1], axis=0, dtype=np.int64) + np.zeros_like(quotas[-1])
        parts = []
        tasks = self.tables[stream].tasks
        for task, used, quota in zip(tasks, before_T.tolist(), quotas[-1].tolist(), strict=True):
            while quota > 0:
                turn, position = divmod(used, task.count)
                order = self._permutation(stream, task.id, turn, task.count)
                part = order[position : position + quota]
                parts.append(task.start + part)
                used, quota = used + len(part), quota - len(part)
        return np.concatenate(parts)

    def _permutation(self, stream: int, task: int, turn: int, count: int) -> NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(count)
        rng = np.random.default_rng((self.shuffle_seed, stream, task, turn))
        return rng.permutation(count)

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        """Position in the data, and the fingerprint of the mixture it belongs to.

        After the end of an epoch Composer asks with ``num_samples=0, from_beginning=True``.
        Streaming would answer with the start of the epoch that has just ended, and a resumed run
        would repeat it; here the answer is the start of the next one.
        """
        state = super().state_dict(num_samples, from_beginning)
        if from_beginning and num_samples == 0 and state["epoch"] == self.next_epoch - 1:
            state["epoch"] += 1
        return {**state, FINGERPRINT_KEY: self.fingerprint}

    def load_state_dict(self, obj: dict[str, Any]) -> None:
        """Set the position; call before iterating.

        Raises:
            ValueError: The state was saved with other tasks, samples or rates.
        """
        saved = obj.get(FINGERPRINT_KEY)
        if saved != self.fingerprint:
            raise ValueError(
                f"data state: {FINGERPRINT_KEY} is {saved!r}, but this mixture has "
                f"{self.fingerprint!r}; a run resumes only on the same data, weights and epoch size"
            )
        with recorded() as opened:
            super().load_state_dict(obj)
        self._blocks += opened

    def _resume(self, world: World, epoch: int) -> tuple[int, int]:
        """Where to begin; called by streaming, which would keep a block open for every epoch."""
        with recorded() as opened:
            begin = super()._resume(world, epoch)
        release(opened)
        return begin


def build_mixture_dataset(
    path: str | Path,
    *,
    batch_size: int,
    split: str = "train",
    weights: Mapping[str, float] | None = None,
    epoch_size: int | None = None,
    seed: int = 0,
    shuffle: bool = True,
    verify: bool | None = None,
) -> MixtureDataset:
    """Open one split of a data directory as a weighted mixture.

    Args:
        path: Built by ``flan-moe-data``.
        batch_size: Raw examples in the batch of one device.
        split: ``"train"`` or ``"validation"``.
        weights: Mixture, then its weight; None weighs all tasks by ``min(count, cap)``.
        epoch_size: Samples in an epoch, over all devices. None takes the sum of ``min(count, cap)``
            over all tasks of the mixtures that have a weight.
        seed: Of the choice and the order of samples.
        shuffle: Whether the order is random, and different in every epoch.
        verify: Whether to read every shard and check its hash first; None decides by size, see
            `open_data_directory`.

    Raises:
        ValueError: The directory is damaged, or an argument does not fit it; names file or key.
    """
    path = Path(path)
    for key, value in (("batch_size", batch_size), ("epoch_size", epoch_size)):
        if value is not None and (isinstance(value, bool) or value < 1):
            raise ValueError(f"{key} is {value!r}; expected a positive whole number")
    manifest = open_data_directory(path, hashes=verify)
    plan = plan_epoch(path, manifest, split, weights, epoch_size, shuffle=shuffle)
    return MixtureDataset(
        tables=tuple(table for table, _ in plan.values()),
        directories=tuple(path / split / name for name in plan),
        choose=tuple(number for _, number in plan.values()),
        batch_size=batch_size,
        shuffle=shuffle,
        shuffle_seed=seed,
        # One canonical node: with more, streaming repeats samples to even them out.
        num_canonical_nodes=1,
    )


def plan_epoch(
    path: Path,
    manifest: Manifest,
    split: str,
    weights: Mapping[str, float] | None,
    epoch_size: int | None,
    *,
    shuffle: bool,
) -> dict[str, tuple[TaskTable, int]]:
    """How many samples of which mixture an epoch holds; see `build_mixture_dataset`.

    Returns:
        Mixture, then its task table and its samples in an epoch.

    Raises:
        ValueError: A task table is damaged, or an argument does not fit; names file or key.
    """
    if split not in manifest.splits:
        raise ValueError(f"split is {split!r}; {path} has {sorted(manifest.splits)}")
    tables = {name: read_task_table(path / split / name) for name in manifest.splits[split]}
    sizes = {
        name: sum(min(task.count, task.cap) for task in table.tasks)
        for name, table in tables.items()
    }
    if weights is not None:
        # A mixture of the directory that this split happens to lack may be left out by name.
        known = {task["mixture"] for task in manifest.tasks}
        weights = {n: w for n, w in weights.items() if w or n in sizes or n not in known}
    shares = mixture_weights(sizes, weights)
    total = _epoch_size(epoch_size, sum(sizes[name] for name in shares), shuffle)
    choose = whole_shares(np.array(list(shares.values())), total)
    for name, number in zip(shares, choose, strict=True):
        if number == 0:
            raise ValueError(
                f"epoch_size is {total}; mixture {name!r} with share {shares[name]:.2g} would get "
                "no sample"
            )
    return {name: (tables[name], int(number)) for name, number in zip(shares, choose, strict=True)}


def _epoch_size(asked: int | None, natural: int, shuffle: bool) -> int:
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


def _fingerprint(
    tables: tuple[TaskTable, ...], directories: tuple[Path, ...], choose: tuple[int, ...]
) -> str:
    """Digest of everything that decides which samples come when, but seed and batch size."""
    digest = hashlib.sha256()
    for table, directory, number in zip(tables, directories, choose, strict=True):
        tasks = [[t.id, t.name, t.start, t.count, t.cap] for t in table.tasks]
        digest.update(json.dumps([table.mixture, number, tasks]).encode())
        digest.update((directory / "index.json").read_bytes())  # holds the hashes of the shards
    return digest.hexdigest()
