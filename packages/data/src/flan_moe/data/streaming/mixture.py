"""A mixture of many tasks as one mosaicml-streaming dataset.

One stream per stored mixture; which samples an epoch holds, and in which order, is decided here.
Partitioning over ranks and workers, and resuming, are left to streaming.
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
from streaming import StreamingDataset
from streaming.base.dataset import _ShardState
from streaming.base.distributed import maybe_init_dist
from streaming.base.shuffle import get_shuffle
from streaming.base.world import World
from torch import distributed

from flan_moe.data.storage.manifest import open_with_tables
from flan_moe.data.storage.shards import INDEX
from flan_moe.data.streaming.epoch_plan import Chosen, EpochPlan
from flan_moe.data.streaming.mds_stream import MixtureStream
from flan_moe.data.streaming.mixture_plan import Mixture, plan_epoch
from flan_moe.data.streaming.remote import TIMEOUT_S, Location, OpenedDirectory, open_location
from flan_moe.data.streaming.shared_memory import (
    belongs,
    construction,
    discard_run_state,
    hold,
    reclaim,
    recorded,
    release,
    release_prefix,
)
from flan_moe.data.whole_number import check_whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MixtureDataset", "build_mixture_dataset", "plan_epoch"]

FINGERPRINT_KEY = "mixture_fingerprint"


class MixtureDataset(StreamingDataset):
    """Samples of several stored mixtures, by a plan of epochs.

    Built by `build_mixture_dataset`. A sample is a dict with ``input_ids``, ``labels``, ``task``
    and ``template``.

    With ``shuffle``, epochs walk each task (each setting of it, where a mixture is specified)
    through an endless chain of random permutations of its samples: none comes again, in whatever
    epoch, before all others have come; an epoch in which a permutation ends and the next begins is
    shuffled as a whole. Without, every epoch is the same first samples in stored order.

    The order is a function of seed, epoch and global batch size: the numbers of ranks and workers
    do not change it.

    Args:
        plan: Which samples an epoch holds.
        directories: The MDS directory of each of its stored mixtures.
        sources: Where their missing shards are fetched from; None where all are local.
        shuffle: Whether the order is random, and different in every epoch.
        **kwargs: Passed to `StreamingDataset`.
    """

    def __init__(
        self,
        *,
        plan: EpochPlan,
        directories: tuple[Path, ...],
        sources: tuple[Location | None, ...],
        shuffle: bool,
        **kwargs: Any,
    ) -> None:
        self.plan = plan
        self.tables = tuple(plan.tables.values())
        self.shuffled = shuffle
        self.fingerprint = _fingerprint(plan, directories, shuffle=shuffle)
        self._present: set[int] = set()
        # Streaming wants fixed numbers; of these it uses the sum only, which is the epoch's size.
        numbers = [plan.epoch_size] + [0] * (len(directories) - 1)
        streams = [
            MixtureStream(local=directory, choose=number, source=source)
            for directory, number, source in zip(directories, numbers, sources, strict=True)
        ]
        leader = World.detect().is_local_leader
        ours = maybe_init_dist()
        with construction(leader=leader):
            if leader:
                reclaim(str(directory.absolute()) for directory in directories)
            if distributed.is_available() and distributed.is_initialized():
                distributed.barrier()  # nobody looks for a prefix before the leader has the lock
            # A cache limit would delete shards that exist nowhere else: streaming's #988. And the
            # order is made here, as streaming's shuffling knows no segments.
            with recorded() as opened:
                super().__init__(streams=streams, cache_limit=None, shuffle=False, **kwargs)
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
        for shard in self.shards:
            shard.close()
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
        """Samples of each task of one stored mixture in an epoch, (T,), in its table's order."""
        epoch = epoch if self.shuffled else 0
        counts_C = sum(
            self.plan.quotas(epoch, segment, self.shuffle_seed)
            for segment in self.plan.segments(epoch)
        )
        cells, tasks = self.plan.cells, self.tables[stream_id].tasks
        ours = cells.stream == stream_id
        place = {task.id: number for number, task in enumerate(tasks)}
        numbers = [place[task] for task in cells.task[ours].tolist()]
        return np.bincount(numbers, counts_C[ours], len(tasks)).astype(np.int64)

    def resample_streams(
        self, epoch: int, stream_id: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The epoch's samples in their final order; called by streaming.

        Args:
            epoch: Which epoch.
            stream_id: Must be None: the order is one of all streams together.

        Returns:
            The number of samples in each shard's turn (which streaming would need to shuffle), and
            the sample ids.
        """
        if stream_id is not None:
            raise ValueError("batching_method: expected 'random', the mixture is drawn as a whole")
        if not self.shuffled:
            # An evaluation set must not drift from epoch to epoch.
            ids = self._ids(self.plan.choose_first(self.shuffle_seed)[1])
            return self._units(ids), ids
        units, ids = [], []
        for segment, chosen in self.plan.choose(epoch, self.shuffle_seed):
            stored = self._ids(chosen)
            units.append(self._units(stored))
            # One order per segment: what follows a change of the mixture comes after it.
            seed = (self.shuffle_seed + segment.stage * 1_000_003) % 2**32
            order = get_shuffle(
                self.shuffle_algo,
                units[-1],
                1,
                seed,
                epoch,
                self._block_size(),
            )
            ids.append(stored[order])
        return np.concatenate(units), np.concatenate(ids)

    def _ids(self, chosen: Chosen) -> NDArray[np.int64]:
        return self.sample_offset_per_stream[chosen.stream] + chosen.sample

    def _units(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Samples of each shard that has any; the ids ascend."""
        shard = np.searchsorted(self.sample_offset_per_shard, ids, side="right") - 1
        return np.unique(shard, return_counts=True)[1].astype(np.int64)

    def _block_size(self) -> int:
        """Over how many samples a shard's are spread; streaming's default for one node."""
        return self.shuffle_block_size or 4_000_000

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """Bring a shard if it is missing; called by streaming, for every sample.

        Streaming downloads in a background thread, and a failure there would end the epoch early
        without a word, or leave other workers waiting for ever. So it is left to whoever wants a
        sample of the shard to try again, in the foreground, where the error is seen.
        """
        if shard_id in self._present:
            return
        try:
            super().prepare_shard(shard_id, blocking)
        except (OSError, ValueError):
            self._shard_states[shard_id] = _ShardState.LOCAL
            if blocking:
                raise
            return
        shard = self.shards[shard_id]
        if Path(shard.dirname, shard.raw_data.basename).is_file():
            self._present.add(int(shard_id))

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
            ValueError: The state was saved with other tasks, samples or rates, or is damaged; names
                the key.
        """
        saved = obj.get(FINGERPRINT_KEY)
        if saved != self.fingerprint:
            raise ValueError(
                f"data state: {FINGERPRINT_KEY} is {saved!r}, but this mixture has "
                f"{self.fingerprint!r}; a run resumes only on the same data, weights and epoch size"
            )
        self._check_position(obj)
        with recorded() as opened:
            super().load_state_dict(obj)
        self._blocks += opened

    def _check_position(self, obj: Mapping[str, Any]) -> None:
        """Refuse what streaming would take for a position, and give other samples than it means."""
        for key in ("epoch", "sample_in_epoch", "shuffle_seed"):
            # Before the first epoch streaming calls it epoch -1.
            if key != "epoch" or obj.get(key) != -1 or obj.get("sample_in_epoch") != 0:
                check_whole(f"data state: {key}", obj.get(key), least=0)
        # Unshuffled, streaming may add a few to even out the ranks.
        if self.shuffled and obj["sample_in_epoch"] > self.plan.epoch_size:
            raise ValueError(
                f"data state: sample_in_epoch is {obj['sample_in_epoch']}; expected at most "
                f"{self.plan.epoch_size}, the size of the epoch"
            )
        if obj.get("num_canonical_nodes") != 1:  # streaming would repeat samples
            raise ValueError(
                f"data state: num_canonical_nodes is {obj.get('num_canonical_nodes')!r}; expected 1"
            )

    def _resume(self, world: World, epoch: int) -> tuple[int, int]:
        """Where to begin; called by streaming, which would keep a block open for every epoch."""
        with recorded() as opened:
            begin = super()._resume(world, epoch)
        release(opened)
        return begin


def build_mixture_dataset(
    path: str | Path | OpenedDirectory,
    *,
    batch_size: int,
    split: str = "train",
    weights: Mapping[str, float] | None = None,
    mixture: Mixture | None = None,
    epoch_size: int | None = None,
    seed: int = 0,
    shuffle: bool = True,
    verify: bool | None = None,
    cache: str | Path | None = None,
    timeout: float = TIMEOUT_S,
) -> MixtureDataset:
    """Open one split of a data directory as a weighted mixture.

    Args:
        path: Built by ``flan-moe-data``; a folder, or the URL of one
            (`flan_moe.data.streaming.remote`), whose shards are then fetched as they are needed.
        batch_size: Raw examples in the batch of one device.
        split: ``"train"`` or ``"validation"``.
        weights: Stored mixture, then its weight; None weighs all tasks by ``min(count, cap)``.
        mixture: Instead of weights a specification, the name of a preset, or a YAML file: every
            epoch then holds whole numbers of samples of each task and setting, within one of their
            shares. Or a curriculum of specifications.
        epoch_size: Samples in an epoch, over all devices. None takes the sum of ``min(count, cap)``
            over all tasks that have a share, of a curriculum in its first stage.
        seed: Of the choice and the order of samples.
        shuffle: Whether the order is random, and different in every epoch.
        verify: Whether to read every shard that is here and check its hash first; None decides by
            size, see `open_data_directory`. What is fetched is always verified.
        cache: Of a URL: parent of the folder that its files are kept in; None for
            ``flan-moe-data`` in the user's cache directory. Nothing is ever removed from it.
        timeout: Of a URL: seconds to wait for a connection, and for each read.

    Raises:
        ValueError: The directory is damaged, or an argument does not fit it; names file or key.
        DownloadError: A remote file is missing, cannot be reached or is damaged; names its URL.
    """
    for key, value in (("batch_size", batch_size), ("epoch_size", epoch_size)):
        if value is not None or key == "batch_size":
            check_whole(key, value)
    check_whole("seed", seed, least=0)
    opened = open_location(path, cache=cache, timeout=timeout)
    folder, source = opened.folder, opened.source
    manifest, tables = open_with_tables(folder, hashes=verify, complete=source is None)
    plan = plan_epoch(
        folder,
        manifest,
        split,
        weights,
        epoch_size,
        shuffle=shuffle,
        mixture=mixture,
        tables=tables.get(split),
    )
    return MixtureDataset(
        plan=plan,
        directories=tuple(folder / split / name for name in plan.tables),
        sources=tuple(source and source / f"{split}/{name}" for name in plan.tables),
        batch_size=batch_size,
        shuffle=shuffle,
        shuffle_seed=seed,
        # One canonical node: with more, streaming repeats samples to even them out.
        num_canonical_nodes=1,
    )


def _fingerprint(plan: EpochPlan, directories: tuple[Path, ...], *, shuffle: bool) -> str:
    """Digest of everything that decides which samples come when, but seed and batch size."""
    order = "" if shuffle else " in stored order"
    digest = hashlib.sha256(f"{plan.epoch_size} {plan.description}{order}".encode())
    for table, directory in zip(plan.tables.values(), directories, strict=True):
        tasks = [
            [t.id, t.name, t.start, t.count, t.cap, list(t.types.items())] for t in table.tasks
        ]
        digest.update(json.dumps([table.mixture, tasks]).encode())
        digest.update((directory / INDEX).read_bytes())  # holds the hashes of the shards
    return digest.hexdigest()
