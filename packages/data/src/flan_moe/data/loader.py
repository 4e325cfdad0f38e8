"""The dataloader: a mixture, packed, that resumes exactly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from streaming import StreamingDataLoader

from flan_moe.data.manifest import read_manifest
from flan_moe.data.mixture import build_mixture_dataset
from flan_moe.data.packing import MAX_WORKERS, Overlong, PackedCollator
from flan_moe.data.task_table import TaskTable


def dataloader(
    path: str | Path,
    *,
    batch_size: int,
    split: str = "train",
    weights: Mapping[str, float] | None = None,
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
) -> StreamingDataLoader:
    """Batches of a data directory for training or validation.

    One batch is made of ``batch_size`` raw examples; how many rows they fill varies unless ``rows``
    is given. The first key of a batch, ``task_ids``, has one entry per raw example, by which
    streaming counts what has been consumed. A trainer that counts itself must count the same way
    (``len(batch["task_ids"])``, not rows), or a resumed run rewinds.

    To resume: make the same dataloader, ``load_state_dict(saved)``, then iterate. Iterating first,
    or making a second dataloader from the same dataset, starts from the beginning. ``num_workers``
    may differ between the runs. ``loader.collate_fn.counts()`` tells how many examples were cut.

    Args:
        path: Built by ``flan-moe-data``.
        batch_size: Raw examples in the batch of one device.
        split: ``"train"`` or ``"validation"``.
        weights: Mixture, then its weight; see `build_mixture_dataset`.
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

    Returns:
        A dataloader with ``state_dict`` and ``load_state_dict``.

    Raises:
        ValueError: The directory is damaged or an argument does not fit; names file or key.
    """
    manifest = read_manifest(path)
    if not 0 <= num_workers <= MAX_WORKERS:
        raise ValueError(f"num_workers is {num_workers!r}; expected 0 to {MAX_WORKERS}")
    collator = PackedCollator(
        max_input_tokens=max_input_tokens or manifest.max_input_tokens,
        max_target_tokens=max_target_tokens or manifest.max_target_tokens,
        pack=pack,
        rows=rows,
        overlong=overlong,
        pad_token_id=manifest.pad_token_id,
    )
    dataset = build_mixture_dataset(
        path,
        batch_size=batch_size,
        split=split,
        weights=weights,
        epoch_size=epoch_size,
        seed=seed,
        shuffle=shuffle,
        verify=verify,
    )
    if overlong == "error":
        _refuse_overlong(dataset.tables, collator)
    return StreamingDataLoader(
        dataset,
        batch_size=batch_size,
        collate_fn=collator,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )


def _refuse_overlong(tables: tuple[TaskTable, ...], collator: PackedCollator) -> None:
    """Refuse before training what `pack_examples` would refuse in the middle of it."""
    for table in tables:
        for task in table.tasks:
            for kind in ("input", "target"):
                longest = getattr(task, f"max_{kind}_tokens")
                budget = getattr(collator, f"max_{kind}_tokens")
                if longest > budget:
                    raise ValueError(
                        f"max_{kind}_tokens is {budget}, but mixture {table.mixture!r}, task "
                        f"{task.name!r} has an example of {longest} tokens (overlong='error')"
                    )
