"""The samples that training would draw, epoch by epoch, without a dataset to stream them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flan_moe.data.mixing.spec import MixtureSpec
from flan_moe.data.storage.manifest import Manifest, open_with_tables
from flan_moe.data.storage.shards import Sample
from flan_moe.data.storage.stored import StoredSamples
from flan_moe.data.streaming.epoch_plan import EpochPlan
from flan_moe.data.streaming.mixture_plan import plan_epoch
from flan_moe.data.whole_number import check_whole

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class MixtureDraw:
    """A mixture over one split of a data directory, to be drawn from.

    Samples are numbered over all its stored mixtures together, G of them.

    Attributes:
        manifest: Of the data directory.
        plan: Which samples an epoch holds.
        stored: The samples of each stored mixture of the plan.
        lengths: Tokens of every input and target, (G, 2).
        tasks: Id of the task of every sample, (G,).
    """

    manifest: Manifest
    plan: EpochPlan
    stored: tuple[StoredSamples, ...]
    lengths: NDArray[np.int64]
    tasks: NDArray[np.int64]

    @classmethod
    def open(
        cls,
        directory: str | Path,
        *,
        split: str = "train",
        weights: Mapping[str, float] | None = None,
        mixture: MixtureSpec | None = None,
        epoch_size: int | None = None,
        verify: bool | None = None,
    ) -> MixtureDraw:
        """Arguments as of `flan_moe.data.streaming.mixture.build_mixture_dataset`.

        ``@SET`` entries of a specification are looked up in the packaged registry.

        Raises:
            ValueError: The directory is damaged, or an argument does not fit; names file or key.
        """
        directory = Path(directory)
        if epoch_size is not None:
            check_whole("epoch_size", epoch_size)
        manifest, tables = open_with_tables(directory, hashes=verify)
        plan = plan_epoch(
            directory,
            manifest,
            split,
            weights,
            epoch_size,
            shuffle=True,
            mixture=mixture,
            tables=tables.get(split),
        )
        stored = tuple(StoredSamples(directory / split / name) for name in plan.tables)
        entries = [task for table in plan.tables.values() for task in table.tasks]
        return cls(
            manifest=manifest,
            plan=plan,
            stored=stored,
            lengths=np.concatenate([samples.lengths() for samples in stored]),
            tasks=np.repeat([task.id for task in entries], [task.count for task in entries]),
        )

    def epoch(self, epoch: int, seed: int) -> NDArray[np.int64]:
        """Numbers of the samples that `MixtureDataset` draws in an epoch, in random order, (N,)."""
        base = np.cumsum([0, *map(len, self.stored)])
        parts = [base[chosen.stream] + chosen.sample for _, chosen in self.plan.choose(epoch, seed)]
        numbers_N = np.concatenate(parts)
        return numbers_N[np.random.default_rng((seed, epoch)).permutation(len(numbers_N))]

    def __getitem__(self, number: int) -> Sample:
        """A sample by its number."""
        stream = 0
        while number >= len(self.stored[stream]):
            number -= len(self.stored[stream])
            stream += 1
        return self.stored[stream][number]
