"""Packing: several examples in one row of encoder tokens and one row of decoder tokens.

Stateless: a batch of raw examples becomes one batch of rows, nothing is carried over to the next,
so that a resumed run sees the same batches. Segment k of a row's encoder belongs to segment k of
its decoder; 0 is padding. No attention crosses a segment.

Legend: N raw examples, B rows, S encoder tokens, L decoder tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

Overlong = Literal["truncate", "drop", "error"]
IGNORE_INDEX = -100
MAX_WORKERS = 256
_COUNTS = ("examples", "truncated", "dropped")


def best_fit_decreasing(
    lengths: Sequence[tuple[int, int]], budget: tuple[int, int]
) -> list[list[int]]:
    """Assign examples to rows under two budgets at once.

    Examples are placed from the largest to the smallest (by the greater of their two shares of the
    budget); each goes to the row that it fills best, and to a new row when it fits none. Ties go to
    the earlier example and the earlier row, so the result is a function of its arguments.

    Args:
        lengths: Encoder and decoder length of each example, none above the budget.
        budget: Encoder and decoder length of a row.

    Returns:
        For each row the indices of its examples.
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []

    def size(index: int) -> tuple[float, float]:
        shares = (lengths[index][0] / budget[0], lengths[index][1] / budget[1])
        return max(shares), sum(shares)

    for index in sorted(range(len(lengths)), key=size, reverse=True):
        need = lengths[index]
        fitting = [
            (max((s - need[0]) / budget[0], (t - need[1]) / budget[1]), row)
            for row, (s, t) in enumerate(free)
            if s >= need[0] and t >= need[1]
        ]
        if fitting:
            row = min(fitting)[1]
        else:
            row = len(rows)
            rows.append([])
            free.append(budget)
        rows[row].append(index)
        free[row] = (free[row][0] - need[0], free[row][1] - need[1])
    return rows


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
    budget = (max_input_tokens, max_target_tokens)
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    counts = {"examples": len(examples), "truncated": 0, "dropped": 0}
    for example in examples:
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
    lengths = [(len(source), len(target)) for source, target in kept]
    assignment = best_fit_decreasing(lengths, budget) if pack else [[i] for i in range(len(kept))]
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
    return {"task_ids": task_ids, **batch}, counts


def _layout(
    kept: list[tuple[np.ndarray, np.ndarray]],
    assignment: list[list[int]],
    budget: tuple[int, int],
    rows: int | None,
    pad_token_id: int,
    multiple: int,
) -> dict[str, Tensor]:
    widths = []
    for side, limit in enumerate(budget):
        longest = max(sum(len(kept[index][side]) for index in row) for row in assignment)
        widths.append(limit if rows is not None else min(limit, -(-longest // multiple) * multiple))
    num_rows = len(assignment) if rows is None else rows
    input_ids = np.full((num_rows, widths[0]), pad_token_id, np.int64)
    labels = np.full((num_rows, widths[1]), IGNORE_INDEX, np.int64)
    segments = [np.zeros((num_rows, width), np.int64) for width in widths]
    for row, indices in enumerate(assignment):
        at = [0, 0]
        for segment, index in enumerate(indices, start=1):
            for side, (tokens, values) in enumerate(
                zip(kept[index], (input_ids, labels), strict=True)
            ):
                end = at[side] + len(tokens)
                values[row, at[side] : end] = tokens
                segments[side][row, at[side] : end] = segment
                at[side] = end
    return {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy((segments[0] > 0).astype(np.int64)),
        "encoder_segments": torch.from_numpy(segments[0]),
        "labels": torch.from_numpy(labels),
        "decoder_segments": torch.from_numpy(segments[1]),
    }


@dataclass(frozen=True, kw_only=True)
class PackedCollator:
    """`pack_examples` as the ``collate_fn`` of a dataloader, with counts over all workers.

    Attributes are the arguments of `pack_examples`.
    """

    max_input_tokens: int
    max_target_tokens: int
    pack: bool = True
    rows: int | None = None
    overlong: Overlong = "truncate"
    pad_token_id: int = 0
    pad_to_multiple_of: int = 8
    _counts: Tensor = field(
        default_factory=lambda: torch.zeros(
            MAX_WORKERS + 1, len(_COUNTS), dtype=torch.int64
        ).share_memory_(),
        repr=False,
        compare=False,
    )

    def __post_init__(self) -> None:
        """Check the arguments.

        Raises:
            ValueError: One is outside its range; names it.
        """
        for key in ("max_input_tokens", "max_target_tokens", "rows", "pad_to_multiple_of"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key} is {value!r}; expected a positive whole number")
        if self.overlong not in get_args(Overlong):
            raise ValueError(f"overlong is {self.overlong!r}; expected one of {get_args(Overlong)}")

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Pack one batch; see `pack_examples`."""
        batch, counts = pack_examples(
            examples,
            max_input_tokens=self.max_input_tokens,
            max_target_tokens=self.max_target_tokens,
            pack=self.pack,
            rows=self.rows,
            overlong=self.overlong,
            pad_token_id=self.pad_token_id,
            pad_to_multiple_of=self.pad_to_multiple_of,
        )
        worker = get_worker_info()
        # One row per process: no two ever write the same number.
        row = self._counts[0 if worker is None else 1 + worker.id]
        row += torch.tensor([counts[key] for key in _COUNTS])
        return batch

    def counts(self) -> dict[str, int]:
        """Examples packed so far, prefetched batches included, and how many were cut or dropped."""
        return dict(zip(_COUNTS, self._counts.sum(0).tolist(), strict=True))
