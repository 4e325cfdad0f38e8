"""The same mixture from WebDataset tars: the same samples in every epoch, in an order of its own.

Tars are read from front to back, which suits slow disks and stores that are bad at small reads.
What an epoch holds is decided by the same plan as for MDS shards
(`flan_moe.data.streaming.epoch_plan`), so the quotas are exact here too, samples not wanted
are passed over, and nothing comes again before all of its task and setting have come. Readers of
several tars take turns, and a buffer is shuffled, as tars hold task after task.

What tars cannot do: resume within an epoch (start at an epoch with ``first_epoch``), and give an
order that does not depend on the number of workers and ranks.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from streaming.base.world import World
from torch.utils.data import IterableDataset, get_worker_info

from flan_moe.data.storage.shards import Sample, ShardError, decode_tar_sample, tar_member_number
from flan_moe.data.streaming.epoch_plan import Chosen, EpochPlan, Segment
from flan_moe.data.streaming.remote import Location, fetch

if TYPE_CHECKING:
    from numpy.typing import NDArray

FIRST = 10  # the part of the buffer that is filled before the first sample leaves it


@dataclass(frozen=True, kw_only=True)
class Tar:
    """One tar of a stored mixture.

    Attributes:
        file: Where it is, or will be.
        source: Where it is fetched from; None where it is local.
        size: Its bytes.
        sha256: Its hash.
        samples: Number of samples.
    """

    file: Path
    source: Location | None
    size: int
    sha256: str
    samples: int

    def read(self, wanted: Mapping[int, int]) -> Iterator[Sample]:
        """Samples by their number in the stored mixture, each as often as wanted, in that order.

        Raises:
            ShardError: The tar is damaged, lacks a sample, or holds a member of another name
                (which could be a path that leads elsewhere).
            DownloadError: It cannot be fetched.
        """
        import webdataset

        if self.source is not None and not self.file.is_file():
            fetch(self.source, self.file, size=self.size, sha256=self.sha256)

        # A list keeps webdataset from expanding braces or reading a scheme out of the path.
        pipeline = webdataset.DataPipeline(
            webdataset.SimpleShardList([f"file:{self.file.absolute()}"]),
            webdataset.tarfile_to_samples(
                # Others are not even read; those of other names are, to be refused.
                select_files=lambda name: not name[:9].isdecimal() or int(name[:9]) in wanted
            ),
        )
        found = 0
        try:
            for member in pipeline:
                times = wanted.get(tar_member_number(self.file, member["__key__"]), 0)
                if times:
                    sample = decode_tar_sample(member["json"])
                    for _ in range(times):
                        yield sample
                    found += 1
        except ShardError:
            raise
        except Exception as error:  # tarfile, json and webdataset raise many unrelated types
            raise ShardError(f"{self.file}: cannot be read: {error}") from error
        if found != len(wanted):
            raise ShardError(f"{self.file}: {len(wanted) - found} of its samples are missing")


class WebMixture(IterableDataset):
    """Samples of an epoch, for this rank and worker; every iteration is the next epoch.

    Args:
        plan: Which samples an epoch holds.
        tars: The tars of each of its stored mixtures.
        batch_size: Of a device; samples are divided so that all ranks have as many batches.
        seed: Of choice and order.
        first_epoch: What the first iteration is.
        open_tars: How many tars take turns.
        buffer: Samples among which the next is drawn.
    """

    def __init__(
        self,
        *,
        plan: EpochPlan,
        tars: tuple[tuple[Tar, ...], ...],
        batch_size: int,
        seed: int,
        first_epoch: int,
        open_tars: int,
        buffer: int,
    ) -> None:
        self.plan = plan
        self.tars = tuple(tar for group in tars for tar in group)
        sizes = np.array([tar.samples for tar in self.tars])
        self._ends = np.cumsum(sizes)  # over all streams, in their order
        groups = [sum(tar.samples for tar in group) for group in tars]
        self._bases = np.cumsum([0, *groups[:-1]])
        self.batch_size = batch_size
        self.seed = seed
        self.next_epoch = first_epoch
        self.open_tars = open_tars
        self.buffer = buffer
        self._ranks = World.detect()

    def __iter__(self) -> Iterator[Sample]:
        """The samples of the next epoch that are this rank's and this worker's."""
        epoch, self.next_epoch = self.next_epoch, self.next_epoch + 1
        worker = get_worker_info()
        workers = worker.num_workers if worker is not None else 1
        ranks = self._ranks.num_ranks
        consumer = self._ranks.rank + ranks * (worker.id if worker is not None else 0)
        for segment, chosen in self.plan.choose(epoch, self.seed):
            shares = self.divide(epoch, segment, chosen, ranks=ranks, workers=workers)
            rng = random.Random(f"{self.seed} {epoch} {segment.stage} {consumer}")
            yield from _shuffled(self._interleaved(shares[consumer], rng), self.buffer, rng)

    def divide(
        self, epoch: int, segment: Segment, chosen: Chosen, *, ranks: int, workers: int
    ) -> list[NDArray[np.int64]]:
        """Cut a segment into shares, in an order of the tars that is the epoch's own.

        Args:
            epoch: Which epoch.
            segment: Which part of it.
            chosen: Its samples.
            ranks: How many devices there are.
            workers: How many processes each has.

        Returns:
            For each share (rank + ranks * worker) the numbers of its samples over all streams.
            Shares of one worker number are of equal size on all ranks, over an epoch.
        """
        number_N = self._bases[chosen.stream] + chosen.sample
        tar_N = np.searchsorted(self._ends, number_N, side="right")
        rng = np.random.default_rng((self.seed, epoch, segment.stage))
        place = rng.permutation(len(self.tars))
        number_N = number_N[np.argsort(place[tar_N], kind="stable")]
        # As if global batch after global batch went to one worker after the other.
        position_N = np.arange(segment.begin, segment.begin + segment.length)
        worker_N = position_N // (ranks * self.batch_size) % workers
        sizes = np.bincount(position_N % ranks + ranks * worker_N, minlength=ranks * workers)
        return np.split(number_N, np.cumsum(sizes)[:-1])

    def _interleaved(self, number_N: NDArray[np.int64], rng: random.Random) -> Iterator[Sample]:
        """The samples, each time from one of the open tars, more often from fuller ones."""
        tar_N = np.searchsorted(self._ends, number_N, side="right")
        # In the order of the share: that of the tars is random already.
        waiting = list(dict.fromkeys(tar_N.tolist()))[::-1]
        readers: list[Iterator[Sample]] = []
        left: list[int] = []
        while waiting or readers:
            while waiting and len(readers) < self.open_tars:
                tar = waiting.pop()
                group = int(np.searchsorted(self._bases, self._ends[tar] - 1, side="right")) - 1
                inside = number_N[tar_N == tar] - self._bases[group]
                numbers, counts = np.unique(inside, return_counts=True)
                wanted = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
                readers.append(self.tars[tar].read(wanted))
                left.append(len(inside))
            turn = rng.choices(range(len(readers)), left)[0]
            yield next(readers[turn])
            left[turn] -= 1
            if not left[turn]:
                for _ in readers[turn]:  # to its end, where it checks itself
                    raise AssertionError("a tar gave more samples than were wanted")
                del readers[turn], left[turn]


def _shuffled(samples: Iterator[Sample], size: int, rng: random.Random) -> Iterator[Sample]:
    """Each time one of the next ``size``, at random; of fewer at first, so as to start at once."""
    held: list[Sample] = []
    for number, sample in enumerate(samples):
        held.append(sample)
        # Until it is full, the buffer grows by one for every sample that leaves it.
        if len(held) >= size or (number >= size // FIRST and number % 2):
            turn = rng.randrange(len(held))
            held[turn], held[-1] = held[-1], held[turn]
            yield held.pop()
    rng.shuffle(held)
    yield from held
