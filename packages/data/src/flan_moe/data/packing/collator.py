"""The ``collate_fn`` of a dataloader that packs, with counts over all its workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from flan_moe.data.packing.batch import Overlong, pack_and_measure
from flan_moe.data.whole_number import check_whole

MAX_WORKERS = 256
_COUNTS = ("examples", "truncated", "dropped")


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
            if value is not None or key != "rows":
                check_whole(key, value)
        if self.overlong not in get_args(Overlong):
            raise ValueError(f"overlong is {self.overlong!r}; expected one of {get_args(Overlong)}")

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Pack one batch; see `pack_examples`."""
        return self._measured(examples)[0]

    def _measured(
        self, examples: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, Tensor], np.ndarray]:
        """Pack and count one batch; with the tokens of each example in it, (N, 2)."""
        batch, counts, tokens_N2 = pack_and_measure(
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
        return batch, tokens_N2

    def counts(self) -> dict[str, int]:
        """Examples packed so far, prefetched batches included, and how many were cut or dropped."""
        return dict(zip(_COUNTS, self._counts.sum(0).tolist(), strict=True))
