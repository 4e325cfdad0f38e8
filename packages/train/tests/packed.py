"""Packed batches made of random tokens, for tests that need no data folder."""

import torch


def packed_batch(rows=4, inputs=12, targets=6, vocab=100, seed=0, examples_per_row=2):
    """Rows of ``examples_per_row`` examples each, with padding at the end of every row."""
    generator = torch.Generator().manual_seed(seed)
    batch = {"task_ids": torch.arange(rows * examples_per_row)}
    for name, length in (("encoder", inputs), ("decoder", targets)):
        segments = torch.zeros(rows, length, dtype=torch.long)
        for row in range(rows):
            end = 0
            for k in range(examples_per_row):
                room = (length - end) // (examples_per_row - k)
                size = int(torch.randint(1, room + 1, (), generator=generator))
                segments[row, end : end + size] = k + 1
                end += size
        batch[f"{name}_segments"] = segments
    ids = torch.randint(3, vocab, (rows, inputs), generator=generator)
    labels = torch.randint(3, vocab, (rows, targets), generator=generator)
    return {
        **batch,
        "input_ids": torch.where(batch["encoder_segments"] > 0, ids, 0),
        "attention_mask": (batch["encoder_segments"] > 0).long(),
        "labels": torch.where(batch["decoder_segments"] > 0, labels, -100),
    }
