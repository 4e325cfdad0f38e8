"""What Composer must know about a packed batch.

A batch holds N raw examples packed into B rows (see `flan_moe.data`): ``task_ids`` has one entry
per raw example, the other tensors one row per packed row. Composer counts samples, tokens and
microbatches through the functions here.

Shape suffixes: N raw examples, B packed rows, S input positions, L target positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from composer.core import DataSpec

PackedBatch = dict[str, Tensor]

ROW_KEYS = ("input_ids", "attention_mask", "labels", "encoder_segments", "decoder_segments")
"""Tensors of a batch whose first axis is the packed row; these are what the model reads."""


def num_examples(batch: PackedBatch) -> int:
    """Raw examples in a batch.

    Composer resumes a dataset at the sum of this over the batches done, so it must be what was
    drawn from the dataset, not the number of packed rows.
    """
    return len(batch["task_ids"])


def num_tokens(batch: PackedBatch) -> dict[str, int]:
    """Real tokens in a batch: ``total`` in both stacks, ``loss_generating`` in the targets.

    Composer weighs microbatches and ranks by ``loss_generating``, so that the gradient of a batch
    is that of the mean over its target tokens, however it is divided.
    """
    encoder = int((batch["encoder_segments"] > 0).sum())
    decoder = int((batch["decoder_segments"] > 0).sum())
    targets = int((batch["labels"] != -100).sum())
    return {"total": encoder + decoder, "loss_generating": targets}


def split_rows(batch: PackedBatch, rows: int) -> list[PackedBatch]:
    """Divide a packed batch into microbatches of at most ``rows`` packed rows.

    ``task_ids`` is in the order examples were drawn, which packing does not keep, so it has no
    division by rows. It stays with the batch; a microbatch is only what the model reads.

    Args:
        batch: A packed batch.
        rows: Rows per microbatch.

    Returns:
        The microbatches, in row order; ``[batch]`` if all rows fit into one.
    """
    size = len(batch["input_ids"])
    if size <= rows:
        return [batch]
    return [
        {key: batch[key][start : start + rows] for key in ROW_KEYS if key in batch}
        for start in range(0, size, rows)
    ]


def data_spec(dataloader: Iterable[Any]) -> DataSpec:
    """A dataloader of packed batches as Composer wants it."""
    from composer.core import DataSpec

    return DataSpec(
        dataloader,
        split_batch=split_rows,
        get_num_samples_in_batch=num_examples,
        get_num_tokens_in_batch=num_tokens,
    )
