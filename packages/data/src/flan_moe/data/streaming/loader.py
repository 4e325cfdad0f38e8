"""The dataloader: a mixture, packed, that resumes exactly and counts what it hands out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from streaming import StreamingDataLoader
from torch import Tensor

from flan_moe.data.packing import MAX_WORKERS, Overlong, PackedCollator
from flan_moe.data.storage.manifest import Manifest, read_manifest
from flan_moe.data.storage.task_table import TaskTable
from flan_moe.data.streaming.mixture import build_mixture_dataset
from flan_moe.data.streaming.mixture_plan import Mixture
from flan_moe.data.streaming.remote import TIMEOUT_S, OpenedDirectory, open_location
from flan_moe.data.streaming.seen import SeenTasks
from flan_moe.data.whole_number import check_whole

MEASURES_KEY = "example_measures"


@dataclass(frozen=True, kw_only=True)
class MeasuringCollator(PackedCollator):
    """Packs, and tells the loader of each example: input and target tokens, whether overlong."""

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        *,
        max_input_tokens: int | None,
        max_target_tokens: int | None,
        **options: Any,
    ) -> MeasuringCollator:
        """For a data directory, whose budgets are taken where none are given."""
        return cls(
            max_input_tokens=(
                manifest.max_input_tokens if max_input_tokens is None else max_input_tokens
            ),
            max_target_tokens=(
                manifest.max_target_tokens if max_target_tokens is None else max_target_tokens
            ),
            pad_token_id=manifest.pad_token_id,
            **options,
        )

    def refuse_overlong(self, tables: Iterable[TaskTable]) -> None:
        """Refuse before training what `pack_examples` would refuse in the middle of it.

        Raises:
            ValueError: A task has an example above a budget; names both.
        """
        for table in tables:
            for task in table.tasks:
                for kind in ("input", "target"):
                    longest = getattr(task, f"max_{kind}_tokens")
                    budget = getattr(self, f"max_{kind}_tokens")
                    if longest > budget:
                        raise ValueError(
                            f"max_{kind}_tokens is {budget}, but mixture {table.mixture!r}, task "
                            f"{task.name!r} has an example of {longest} tokens (overlong='error')"
                        )

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Pack one batch; see `pack_examples`."""
        batch, tokens_N2 = self._measured(examples)
        lengths = [(len(e["input_ids"]), len(e["labels"])) for e in examples]
        budget_2 = torch.tensor((self.max_input_tokens, self.max_target_tokens))
        overlong_N1 = (torch.tensor(lengths) > budget_2).any(dim=1, keepdim=True).long()
        return {**batch, MEASURES_KEY: torch.cat([torch.from_numpy(tokens_N2), overlong_N1], dim=1)}


class MixtureLoader(StreamingDataLoader):
    """Made by `dataloader`.

    Attributes:
        seen: Samples and tokens of each task that this process has been handed. Not part of
            ``state_dict``, which one rank may call alone; save ``seen.state_dict()`` beside it.
    """

    def __init__(self, *args: Any, seen: SeenTasks, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen = seen

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """The batches of an epoch, or of what is left of it."""
        for batch in super().__iter__():
            measures = batch.pop(MEASURES_KEY)
            self.seen.add(batch["task_ids"].numpy(), measures.numpy())
            yield batch


def dataloader(
    path: str | Path | OpenedDirectory,
    *,
    batch_size: int,
    split: str = "train",
    weights: Mapping[str, float] | None = None,
    mixture: Mixture | None = None,
    epoch_size: int | None = None,
    seed: int = 0,
    shuffle: bool = True,
    max_input_tokens: int | None = None,
    max_target_tokens: int | None = None,
    pack: bool = True,
    rows: int | None = None,
    overlong: Overlong = "truncate",
    num_workers: int = 0,
    verify: bool | None = None,
    cache: str | Path | None = None,
    timeout: float = TIMEOUT_S,
) -> MixtureLoader:
    """Batches of a data directory for training or validation.

    One batch is made of ``batch_size`` raw examples; how many rows they fill varies unless ``rows``
    is given. The first key of a batch, ``task_ids``, has one entry per raw example, by which
    streaming counts what has been consumed. A trainer that counts itself must count the same way
    (``len(batch["task_ids"])``, not rows), or a resumed run rewinds.

    To resume: make the same dataloader, ``load_state_dict(saved)``, then iterate. Iterating first,
    or making a second dataloader from the same dataset, starts from the beginning. ``num_workers``
    may differ between the runs. ``loader.collate_fn.counts()`` tells how many examples were cut,
    ``loader.seen.counts()`` how many samples and tokens of each task have been handed out.

    Args:
        path: Built by ``flan-moe-data``; a folder or the URL of one.
        batch_size: Raw examples in the batch of one device.
        split: ``"train"`` or ``"validation"``.
        weights: Stored mixture, then its weight; see `build_mixture_dataset`.
        mixture: A specification or a curriculum instead; see `build_mixture_dataset`.
        epoch_size: Raw examples in an epoch over all devices; see `build_mixture_dataset`.
        seed: Of choice and order.
        shuffle: Whether the order is random.
        max_input_tokens: Encoder tokens of a row; None takes the manifest's budget.
        max_target_tokens: Decoder tokens of a row; None takes the manifest's budget.
        pack: Whether a row may hold several examples.
        rows: Fixed number of rows per batch; see `pack_examples`.
        overlong: ``"truncate"``, ``"drop"`` or ``"error"``; see `pack_examples`.
        num_workers: Processes that read and pack.
        verify: Whether to check the hash of every shard first; see `build_mixture_dataset`.
        cache: Of a URL: where its files are kept; see `build_mixture_dataset`.
        timeout: Of a URL, in seconds; see `build_mixture_dataset`.

    Returns:
        A dataloader with ``state_dict`` and ``load_state_dict``.

    Raises:
        ValueError: The directory is damaged or an argument does not fit; names file or key.
        DownloadError: A remote file is missing, cannot be reached or is damaged; names its URL.
    """
    check_whole("num_workers", num_workers, least=0)
    if not 0 <= num_workers <= MAX_WORKERS:
        raise ValueError(f"num_workers is {num_workers!r}; expected 0 to {MAX_WORKERS}")
    opened = open_location(path, cache=cache, timeout=timeout)
    manifest = read_manifest(opened.folder)
    collator = MeasuringCollator.of(
        manifest,
        max_input_tokens=max_input_tokens,
        max_target_tokens=max_target_tokens,
        pack=pack,
        rows=rows,
        overlong=overlong,
    )
    dataset = build_mixture_dataset(
        opened,
        batch_size=batch_size,
        split=split,
        weights=weights,
        mixture=mixture,
        epoch_size=epoch_size,
        seed=seed,
        shuffle=shuffle,
        verify=verify,
    )
    if overlong == "error":
        collator.refuse_overlong(dataset.tables)
    return MixtureLoader(
        dataset,
        seen=SeenTasks({task["id"]: task["name"] for task in manifest.tasks}),
        batch_size=batch_size,
        collate_fn=collator,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )
