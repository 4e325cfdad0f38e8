"""What has been seen of each task so far: samples, tokens, overlong; exact across a resume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

_COLUMNS = ("samples", "input_tokens", "target_tokens", "overlong")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Of one task.

    Attributes:
        samples: Examples handed out, overlong ones included.
        input_tokens: Tokens of their inputs, as trained on.
        target_tokens: Tokens of their targets, as trained on.
        overlong: Examples among them that were longer than a row, and were cut or dropped.
    """

    samples: int
    input_tokens: int
    target_tokens: int
    overlong: int = 0


class SeenTasks:
    """Counts per task of the batches that a dataloader has handed out.

    A batch counts when it is handed out, not when a worker has read it ahead, so the counts go with
    the position that the dataloader's ``state_dict`` tells at the same moment. Tokens are counted
    as trained on: cut to the budgets of a row, and not at all where an example is dropped, be it
    overlong or without room in a fixed number of rows.

    Args:
        names: Task id, then name.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        self._names = dict(sorted(names.items()))
        self._ids = np.array(list(self._names), np.int64)
        shape = (len(self._ids), len(_COLUMNS))
        self._before = np.zeros(shape, np.int64)
        self._here = np.zeros(shape, np.int64)

    def add(self, task_ids: np.ndarray, measures: np.ndarray) -> None:
        """Count a batch: (N,) task ids, and (N, 3) input tokens, target tokens, 1 if overlong.

        Raises:
            ValueError: A task is not among those named.
        """
        unknown = task_ids[~np.isin(task_ids, self._ids)]
        if len(unknown):
            raise ValueError(
                f"a sample is of task {unknown[0]}, which the manifest does not list; the shards "
                "are not those of this data directory"
            )
        rows = np.concatenate([np.ones((len(task_ids), 1), np.int64), measures], axis=1)
        np.add.at(self._here, np.searchsorted(self._ids, task_ids), rows)

    def counts(self) -> dict[str, Seen]:
        """Of every task seen: what was loaded, and what this process has been handed since."""
        return self._named(self._before + self._here)

    def total(self) -> dict[str, Seen]:
        """The same over all ranks; where there are several, all of them must call it."""
        return self._named(self._sum())

    def state_dict(self) -> dict[str, Any]:
        """Counts over all ranks, for `load_state_dict` on each of however many ranks come then.

        Where a process group is set up, all ranks must call it.
        """
        sums = self._sum()
        pairs = zip(self._names.values(), sums.tolist(), strict=True)
        return {name: row for name, row in pairs if any(row)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from saved counts.

        Raises:
            ValueError: They are of a task that is not among these; names it.
        """
        places = {name: place for place, name in enumerate(self._names.values())}
        before = np.zeros_like(self._before)
        for name, row in state.items():
            if name not in places:
                raise ValueError(f"counts of task {name!r}: no such task in this data directory")
            before[places[name]] = row
        self._before, self._here = before, np.zeros_like(self._here)

    def _sum(self) -> np.ndarray:
        from torch import distributed

        here = torch.from_numpy(self._here.copy())
        if distributed.is_available() and distributed.is_initialized():
            if distributed.get_backend() == "nccl":
                here = here.cuda()
            distributed.all_reduce(here)
        return self._before + here.cpu().numpy()

    def _named(self, sums: np.ndarray) -> dict[str, Seen]:
        rows = zip(self._names.values(), sums.tolist(), strict=True)
        return {name: Seen(**dict(zip(_COLUMNS, row, strict=True))) for name, row in rows if row[0]}
