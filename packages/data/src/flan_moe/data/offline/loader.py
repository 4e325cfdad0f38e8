"""The dataloader of packed rows: the batches of `flan_moe.data.dataloader`, resumed exactly.

Two units meet here. The dataset deals in rows: they are what is shuffled, divided among ranks and
workers, and skipped on resuming. A trainer counts raw examples, one ``task_ids`` each, as it does
with every batch of this package; Composer sums them over all ranks and asks the dataset for the
state at that number. As rows hold different numbers of examples, the dataset looks up which row of
the epoch's order that number belongs to, and refuses one that is not at a boundary of rows, such as
a number of rows. The dataloader itself counts rows, whose number is the same on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flan_moe.data.offline.manifest import PackedManifest, open_packed_directory
from flan_moe.data.offline.rows import ROWS_FOLDER, Row
from flan_moe.data.packing import MAX_WORKERS, lay_out
from flan_moe.data.storage.task_table import TaskEntry, TaskTable
from flan_moe.data.streaming.epoch_plan import Cells, EpochPlan, Stage
from flan_moe.data.streaming.loader import MEASURES_KEY, MixtureLoader
from flan_moe.data.streaming.mixture import MixtureDataset
from flan_moe.data.streaming.mixture_plan import natural_epoch
from flan_moe.data.streaming.seen import SeenTasks
from flan_moe.data.whole_number import check_whole

if TYPE_CHECKING:
    from numpy.typing import NDArray


class PackedDataset(MixtureDataset):
    """Rows of a packed directory; made by `packed_dataloader`.

    Every epoch has its own order, and no row comes again before all others have come.

    Args:
        segments: Examples of each row, (R,).
        **kwargs: As of `MixtureDataset`.
    """

    def __init__(self, *, segments: NDArray[np.int64], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.segments = segments
        self._known: tuple[int, NDArray[np.int64]] | None = None

    def examples_before(self, epoch: int) -> NDArray[np.int64]:
        """Raw examples in the rows before each place of an epoch's order, and in all of it."""
        if self._known is None or self._known[0] != epoch:
            order = self.resample_streams(epoch)[1]
            self._known = epoch, np.concatenate([[0], np.cumsum(self.segments[order])])
        return self._known[1]

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        """The position after a number of raw examples, counted over all ranks.

        Args:
            num_samples: Raw examples, as Composer counts them (``len(batch["task_ids"])``).
            from_beginning: Whether since the start of the epoch, or since this run began in it.

        Raises:
            ValueError: So many examples are not a whole number of rows.
        """
        epoch, offset = self._resume(self._parallel_rank_world, self.next_epoch - 1)
        reached = self.examples_before(epoch)
        counted = num_samples if from_beginning else num_samples + int(reached[offset])
        row = int(np.searchsorted(reached, counted))
        if row == len(reached) or reached[row] != counted:
            raise ValueError(
                f"data state: {counted} examples of epoch {epoch} are not a whole number of its "
                'rows; count raw examples, len(batch["task_ids"]), over all ranks'
            )
        if from_beginning:
            return super().state_dict(row, True)
        return super().state_dict(row - offset, False)

    def state_after_rows(self, rows: int) -> dict[str, Any]:
        """The position after a number of rows since this run began in the epoch."""
        return super().state_dict(rows, False)


class PackedLoader(MixtureLoader):
    """Made by `packed_dataloader`."""

    def _get_batch_size(self, batch: dict[str, Tensor]) -> int:
        """What streaming counts: rows, the unit of the dataset and equal on all ranks."""
        return len(batch["input_ids"])

    def state_dict(self) -> dict[str, Any]:
        """The position after the batches handed out."""
        from streaming.base.world import World

        return self.dataset.state_after_rows(self.num_samples_yielded * World.detect().num_ranks)


@dataclass(frozen=True, kw_only=True)
class RowCollator:
    """Rows to a batch as of `flan_moe.data.packing.pack_examples`, of static width.

    Attributes:
        max_input_tokens: S.
        max_target_tokens: L.
        pad_token_id: Fills the encoder.
    """

    max_input_tokens: int
    max_target_tokens: int
    pad_token_id: int

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """One batch."""
        joined = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
        lengths = [joined[key].astype(np.int64) for key in ("input_lengths", "label_lengths")]
        batch = lay_out(
            [joined["input_ids"], joined["labels"]],
            lengths,
            np.array([len(row["tasks"]) for row in rows]),
            (self.max_input_tokens, self.max_target_tokens),
            rows=len(rows),
            pad_token_id=self.pad_token_id,
        )
        tasks = torch.from_numpy(joined["tasks"].astype(np.int64))
        return {
            "task_ids": tasks,
            **batch,
            # What was overlong was cut or dropped when the rows were made; the manifest counts it.
            MEASURES_KEY: torch.from_numpy(np.stack([*lengths, np.zeros_like(lengths[0])], axis=1)),
        }


def packed_dataloader(
    path: str | Path,
    *,
    batch_size: int,
    epoch_size: int | None = None,
    seed: int = 0,
    shuffle: bool = True,
    num_workers: int = 0,
    verify: bool | None = None,
) -> PackedLoader:
    """Batches of a packed directory.

    A batch has the keys and the meaning of those of `flan_moe.data.dataloader`, ``task_ids`` with
    one entry per raw example first, but ``batch_size`` rows, all of full width. Resuming works as
    there. A trainer that counts itself counts raw examples (``len(batch["task_ids"])``); what
    streaming calls samples (``len(loader.dataset)``, ``sample_in_epoch`` of a state) are rows.

    Args:
        path: Made by ``flan-moe-data pack``.
        batch_size: Rows in the batch of one device.
        epoch_size: Rows in an epoch over all devices, a multiple of the ranks; rows that an epoch
            leaves out come in the next one. None takes all, and with several ranks a few of the
            next round so that they divide evenly: give a number where a run may go on with another
            number of ranks.
        seed: Of the order.
        shuffle: Whether the order is random.
        num_workers: Processes that read.
        verify: Whether to check the hash of every shard first; None decides by size.

    Raises:
        ValueError: The directory is damaged or an argument does not fit; names file or key.
    """
    for key, value in (("batch_size", batch_size), ("epoch_size", epoch_size)):
        if value is not None or key == "batch_size":
            check_whole(key, value)
    check_whole("seed", seed, least=0)
    check_whole("num_workers", num_workers, least=0)
    if not 0 <= num_workers <= MAX_WORKERS:
        raise ValueError(f"num_workers is {num_workers!r}; expected 0 to {MAX_WORKERS}")
    path = Path(path)
    manifest, segments_R = open_packed_directory(path, hashes=verify)
    dataset = PackedDataset(
        segments=segments_R,
        plan=_plan(manifest, natural_epoch(epoch_size, manifest.rows, shuffle)),
        directories=(path / ROWS_FOLDER,),
        sources=(None,),
        shuffle=shuffle,
        batch_size=batch_size,
        shuffle_seed=seed,
        num_canonical_nodes=1,
    )
    return PackedLoader(
        dataset,
        seen=SeenTasks({task["id"]: task["name"] for task in manifest.tasks}),
        batch_size=batch_size,
        collate_fn=RowCollator(
            max_input_tokens=manifest.max_input_tokens,
            max_target_tokens=manifest.max_target_tokens,
            pad_token_id=manifest.pad_token_id,
        ),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )


def _plan(manifest: PackedManifest, epoch_size: int) -> EpochPlan:
    """Epochs over all rows as one task."""
    entry = TaskEntry(
        id=0,
        name=ROWS_FOLDER,
        start=0,
        count=manifest.rows,
        cap=manifest.rows,
        max_input_tokens=manifest.max_input_tokens,
        max_target_tokens=manifest.max_target_tokens,
        types={ROWS_FOLDER: manifest.rows},
    )
    tables = {ROWS_FOLDER: TaskTable(mixture=ROWS_FOLDER, tasks=(entry,))}
    whole = Stage(begin=0, shares=np.ones(1), order=np.zeros(1, np.int64))
    return EpochPlan(
        tables=tables,
        cells=Cells.of(tuple(tables.values()), by_setting=False),
        stages=(whole,),
        epoch_size=epoch_size,
        description=ROWS_FOLDER,
    )
