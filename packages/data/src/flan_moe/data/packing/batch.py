"""Packing: several examples in one row of encoder tokens and one row of decoder tokens.

Stateless: a batch of raw examples becomes one batch of rows, nothing is carried over to the next,
so that a resumed run sees the same batches. Segment k of a row's encoder belongs to segment k of
its decoder; 0 is padding. No attention crosses a segment.

Legend: N raw examples, B rows, S encoder tokens, L decoder tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from flan_moe.data.packing.rows import assign_rows

Overlong = Literal["truncate", "drop", "error"]
IGNORE_INDEX = -100


def pack_examples(
    examples: Sequence[Mapping[str, Any]],
    *,
    max_input_tokens: int,
    max_target_tokens: int,
    pack: bool = True,
    rows: int | None = None,
    overlong: Overlong = "truncate",
    pad_token_id: int = 0,
    pad_to_multiple_of: int = 8,
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Turn raw examples into a batch.

    Args:
        examples: N dicts with ``input_ids``, ``labels`` and ``task``.
        max_input_tokens: S at most.
        max_target_tokens: L at most.
        pack: Whether a row may hold several examples.
        rows: A fixed B, and S and L at their maximum: static shapes. Examples that find no room are
            dropped and counted. None takes as many rows as needed, as long as the longest of them.
        overlong: What becomes of an example longer than a row: keep the end of its input and the
            start of its target, leave it out, or refuse it.
        pad_token_id: Written where there is no token.
        pad_to_multiple_of: S and L are multiples of this where the maximum allows.

    Returns:
        The batch: ``task_ids`` (N,), ``input_ids``, ``attention_mask`` and ``encoder_segments``
        (B, S), ``labels`` (B, L) with -100 for no loss, ``decoder_segments`` (B, L), all int64. And
        how many examples there were, were truncated and were dropped.

    Raises:
        ValueError: An example is overlong under ``"error"``, or none is left.
    """
    batch, counts, _ = pack_and_measure(
        examples,
        max_input_tokens=max_input_tokens,
        max_target_tokens=max_target_tokens,
        pack=pack,
        rows=rows,
        overlong=overlong,
        pad_token_id=pad_token_id,
        pad_to_multiple_of=pad_to_multiple_of,
    )
    return batch, counts


def pack_and_measure(
    examples: Sequence[Mapping[str, Any]],
    *,
    max_input_tokens: int,
    max_target_tokens: int,
    pack: bool,
    rows: int | None,
    overlong: Overlong,
    pad_token_id: int,
    pad_to_multiple_of: int,
) -> tuple[dict[str, Tensor], dict[str, int], np.ndarray]:
    """As `pack_examples`, and the tokens of each example that are in the batch, (N, 2) int64.

    They are 0 for examples that were dropped, for whatever reason.
    """
    budget = (max_input_tokens, max_target_tokens)
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    places: list[int] = []
    counts = {"examples": len(examples), "truncated": 0, "dropped": 0}
    for place, example in enumerate(examples):
        source, target = example["input_ids"], example["labels"]
        if len(source) > budget[0] or len(target) > budget[1]:
            if overlong == "error":
                raise ValueError(
                    f"an example of task {int(example['task'])} has {len(source)} input and "
                    f"{len(target)} target tokens; the budget is {budget[0]} and {budget[1]}"
                )
            if overlong == "drop":
                counts["dropped"] += 1
                continue
            counts["truncated"] += 1
            # A prompt's question is at its end. A cut target has no eos: it does not end there.
            source, target = source[-budget[0] :], target[: budget[1]]
        kept.append((source, target))
        places.append(place)
    lengths = [(len(source), len(target)) for source, target in kept]
    assignment = assign_rows(lengths, budget) if pack else [[i] for i in range(len(kept))]
    if rows is not None:
        counts["dropped"] += sum(len(row) for row in assignment[rows:])
        assignment = assignment[:rows]
    if not assignment:
        raise ValueError(
            f"no example is left of {len(examples)}: all exceed {budget[0]} input or {budget[1]} "
            "target tokens"
        )
    batch = _layout(kept, assignment, budget, rows, pad_token_id, pad_to_multiple_of)
    task_ids = torch.tensor([int(example["task"]) for example in examples], dtype=torch.int64)
    tokens_N2 = np.zeros((len(examples), 2), np.int64)
    for index in chain.from_iterable(assignment):
        tokens_N2[places[index]] = lengths[index]
    return {"task_ids": task_ids, **batch}, counts, tokens_N2


def _layout(
    kept: list[tuple[np.ndarray, np.ndarray]],
    assignment: list[list[int]],
    budget: tuple[int, int],
    rows: int | None,
    pad_token_id: int,
    multiple: int,
) -> dict[str, Tensor]:
    order = list(chain.from_iterable(assignment))
    return lay_out(
        [np.concatenate([kept[index][side] for index in order]) for side in (0, 1)],
        [np.array([len(kept[index][side]) for index in order]) for side in (0, 1)],
        np.array([len(row) for row in assignment]),
        budget,
        rows=rows,
        pad_token_id=pad_token_id,
        pad_to_multiple_of=multiple,
    )


def lay_out(
    tokens: Sequence[np.ndarray],
    lengths: Sequence[np.ndarray],
    examples: np.ndarray,
    budget: tuple[int, int],
    *,
    rows: int | None,
    pad_token_id: int,
    pad_to_multiple_of: int = 8,
) -> dict[str, Tensor]:
    """Rows of examples whose places are known, as the tensors of a batch.

    Args:
        tokens: For encoder and decoder the tokens of all examples, row after row.
        lengths: For encoder and decoder the length of each example, (N,).
        examples: Examples of each row, (B,); no row of them exceeds the budget.
        budget: S and L at most.
        rows: A fixed B, not below that of ``examples``, and S and L at their maximum.
        pad_token_id: As of `pack_examples`.
        pad_to_multiple_of: As of `pack_examples`.

    Returns:
        The batch of `pack_examples` but for ``task_ids``.
    """
    segment_N = np.concatenate([np.arange(1, number + 1) for number in examples.tolist()])
    row_N = np.repeat(np.arange(len(examples)), examples)
    num_rows = len(examples) if rows is None else rows
    sides = []
    for side, blank in ((0, pad_token_id), (1, IGNORE_INDEX)):
        used_B = np.bincount(row_N, weights=lengths[side]).astype(np.int64)
        width = budget[side]
        if rows is None:
            width = min(width, -(-int(used_B.max()) // pad_to_multiple_of) * pad_to_multiple_of)
        inside = np.zeros((num_rows, width), bool)
        inside[: len(examples)] = np.arange(width) < used_B[:, None]
        values = np.full((num_rows, width), blank, np.int64)
        values[inside] = tokens[side]
        segments = np.zeros((num_rows, width), np.int64)
        segments[inside] = np.repeat(segment_N, lengths[side])
        sides.append((values, segments, inside))
    (input_ids, encoder, inside), (labels, decoder, _) = sides
    return {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(inside.astype(np.int64)),
        "encoder_segments": torch.from_numpy(encoder),
        "labels": torch.from_numpy(labels),
        "decoder_segments": torch.from_numpy(decoder),
    }
