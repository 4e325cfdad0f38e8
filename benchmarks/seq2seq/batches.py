"""Batches of token ids: full rows, rows padded as users pad them, and the same packed.

Shape suffixes: B rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Batch = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Of a batch: rows, and positions of encoder and decoder."""

    rows: int
    encoder: int
    decoder: int


def make_batches(shape: Shape, vocab_size: int, device: str) -> dict[str, Batch]:
    """``padded``: lengths evenly spread up to the whole row, about half padding; ``unpadded``."""
    generator = torch.Generator().manual_seed(1)

    def ids(length: int) -> Tensor:
        return torch.randint(2, vocab_size, (shape.rows, length), generator=generator)

    input_ids, labels = ids(shape.encoder), ids(shape.decoder)
    order_B = torch.randperm(shape.rows, generator=generator)
    length_B = ((order_B + 1) * shape.encoder // shape.rows).clamp(min=1)[:, None]
    mask = (torch.arange(shape.encoder) < length_B).long()
    label_length_B = (length_B * shape.decoder // shape.encoder).clamp(min=1)
    label_mask = torch.arange(shape.decoder) < label_length_B
    batches = {
        "padded": {
            "input_ids": input_ids * mask,
            "attention_mask": mask,
            "labels": labels.masked_fill(~label_mask, -100),
        },
        "unpadded": {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "labels": labels,
        },
    }
    return {
        name: {key: value.to(device) for key, value in batch.items()}
        for name, batch in batches.items()
    }


def real_tokens(batch: Batch) -> int:
    """Tokens of encoder and decoder that are not padding."""
    return int(batch["attention_mask"].sum() + (batch["labels"] != -100).sum())


def padding_share(batch: Batch) -> float:
    """Share of the positions that are padding."""
    return 1 - real_tokens(batch) / (batch["input_ids"].numel() + batch["labels"].numel())


def pack(batch: Batch) -> Batch:
    """The sequences of a padded batch in as few rows as first fit finds."""
    rows, length = batch["input_ids"].shape
    lengths = batch["attention_mask"].sum(1).tolist()
    members: list[list[int]] = []
    for index in sorted(range(rows), key=lambda i: -lengths[i]):
        for row in members:
            if sum(lengths[i] for i in row) + lengths[index] <= length:
                row.append(index)
                break
        else:
            members.append([index])
    sides = (
        ("encoder", "input_ids", batch["attention_mask"] > 0, 0),
        ("decoder", "labels", batch["labels"] != -100, -100),
    )
    packed: Batch = {}
    for side, key, real, filler in sides:
        widest = max(sum(int(real[i].sum()) for i in row) for row in members)
        packed[key] = batch[key].new_full((len(members), widest), filler)
        segments = batch[key].new_zeros(len(members), widest)
        for row, indices in enumerate(members):
            start = 0
            for number, index in enumerate(indices, start=1):
                tokens = batch[key][index, real[index]]
                end = start + len(tokens)
                packed[key][row, start:end] = tokens
                segments[row, start:end] = number
                start = end
        packed[f"{side}_segments"] = segments
    return packed
