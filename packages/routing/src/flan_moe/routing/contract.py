"""`Routing`: the one description of sparse work that a router hands to the experts.

Shape suffixes: T tokens, R rows (a row is one token sent to one expert), E experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Which expert works on which token, in compressed sparse rows, grouped both ways.

    A token without a row (dropped, or chosen by no expert) costs nothing and gets exactly zero
    from the experts. ``num_rows`` is an upper bound that the host knows without waiting for the
    device; the true count is ``expert_offsets[-1]``, on the device, and nothing may read rows
    past it. What routers build on CPU is trimmed, so that there the two are equal.

    Attributes:
        row_token_R: (R,) int32, the token that a row reads and contributes to. Rows are sorted by
            expert, then by token.
        row_weight_R: (R,) float32 (float64 for float64 tokens), the combine weight,
            differentiable into the router.
        expert_offsets: (E+1,) int32; expert e owns rows ``[expert_offsets[e],
            expert_offsets[e+1])``.
        token_offsets: (T+1,) int32; token t owns entries ``[token_offsets[t],
            token_offsets[t+1])`` of ``token_row_R``.
        token_row_R: (R,) int32, the same rows grouped by token (and by expert within a token), so
            that combining is a gather and a sum in a fixed order.
        losses: unweighted auxiliary losses, scalars, float32 (float64 for float64 tokens),
            differentiable: ``balance``, ``z``.
        stats: detached float32 measurements: ``expert_load_E`` (kept rows per expert),
            ``dropped_fraction`` (fraction of tokens without a row), ``router_entropy`` (nats, mean
            over tokens), ``choice_count_E`` (tokens that chose each expert, before capacity).
    """

    row_token_R: Tensor
    row_weight_R: Tensor
    expert_offsets: Tensor
    token_offsets: Tensor
    token_row_R: Tensor
    losses: Mapping[str, Tensor]
    stats: Mapping[str, Tensor]

    @property
    def num_tokens(self) -> int:
        """T, the number of tokens that were routed (with or without rows)."""
        return self.token_offsets.shape[0] - 1

    @property
    def num_experts(self) -> int:
        """E, the number of experts."""
        return self.expert_offsets.shape[0] - 1

    @property
    def num_rows(self) -> int:
        """R as the host knows it: the true row count on CPU, an upper bound elsewhere."""
        return self.row_token_R.shape[0]

    def validate(self) -> None:
        """Check every invariant of the contract; synchronises with the device.

        For tests and debugging: the experts trust a `Routing` and do not call this.

        Raises:
            ValueError: naming the field and the invariant that is broken.
        """
        self._validate_dtypes_and_shapes()
        true_rows = int(self.expert_offsets[-1])
        _require(
            true_rows <= self.num_rows,
            f"expert_offsets[-1] is {true_rows}, more than the {self.num_rows} rows allocated",
        )
        token_R = self.row_token_R[:true_rows].long()
        _check_offsets("expert_offsets", self.expert_offsets, true_rows)
        _check_offsets("token_offsets", self.token_offsets, true_rows)
        if true_rows:
            low, high = int(token_R.min()), int(token_R.max())
            _require(
                low >= 0 and high < self.num_tokens,
                f"row_token_R holds tokens {low}..{high}, outside 0..{self.num_tokens - 1}",
            )
        row_R = torch.arange(true_rows, device=token_R.device)
        expert_R = _owner(self.expert_offsets, row_R)
        same_expert = expert_R[1:] == expert_R[:-1]
        _require(
            bool((token_R[1:] > token_R[:-1])[same_expert].all()),
            "row_token_R is not strictly increasing within an expert (unsorted, or a token is "
            "sent twice to the same expert)",
        )
        grouped_R = self.token_row_R[:true_rows].long()
        _require(
            bool((grouped_R.sort().values == row_R).all()),
            "token_row_R is not a permutation of the rows",
        )
        owner_R = _owner(self.token_offsets, row_R)
        _require(
            bool((token_R[grouped_R] == owner_R).all()),
            "token_row_R lists a row under a token that is not the row's row_token_R",
        )
        same_token = owner_R[1:] == owner_R[:-1]
        _require(
            bool((grouped_R[1:] > grouped_R[:-1])[same_token].all()),
            "token_row_R is not increasing within a token",
        )
        _require(
            bool(self.row_weight_R[:true_rows].isfinite().all()),
            "row_weight_R holds values that are not finite",
        )

    def _validate_dtypes_and_shapes(self) -> None:
        index = (torch.int32,)
        for name, dtypes in (
            ("row_token_R", index),
            ("row_weight_R", (torch.float32, torch.float64)),
            ("expert_offsets", index),
            ("token_offsets", index),
            ("token_row_R", index),
        ):
            tensor = getattr(self, name)
            _require(tensor.ndim == 1, f"{name} must be 1-D, not {tuple(tensor.shape)}")
            _require(tensor.dtype in dtypes, f"{name} must be {dtypes[0]}, not {tensor.dtype}")
            _require(
                tensor.device == self.row_token_R.device,
                f"{name} is on {tensor.device}, row_token_R on {self.row_token_R.device}",
            )
        for name in ("row_weight_R", "token_row_R"):
            rows = getattr(self, name).shape[0]
            _require(
                rows == self.num_rows, f"{name} has {rows} entries, row_token_R {self.num_rows}"
            )
        for name in ("expert_offsets", "token_offsets"):
            _require(getattr(self, name).shape[0] > 0, f"{name} must have at least one entry")
        for name, loss in self.losses.items():
            _require(
                loss.ndim == 0 and loss.dtype in (torch.float32, torch.float64),
                f"losses[{name!r}] must be a float32 scalar, not {loss.dtype} of shape "
                f"{tuple(loss.shape)}",
            )
        for name, stat in self.stats.items():
            _require(
                stat.dtype == torch.float32 and not stat.requires_grad,
                f"stats[{name!r}] must be float32 and detached",
            )


def _owner(offsets: Tensor, index_R: Tensor) -> Tensor:
    """The group of each index: the g with ``offsets[g] <= index < offsets[g+1]``."""
    return torch.searchsorted(offsets.long(), index_R, right=True) - 1


def _check_offsets(name: str, offsets: Tensor, true_rows: int) -> None:
    _require(int(offsets[0]) == 0, f"{name}[0] is {int(offsets[0])}, not 0")
    _require(bool((offsets[1:] >= offsets[:-1]).all()), f"{name} is not non-decreasing")
    _require(
        int(offsets[-1]) == true_rows,
        f"{name}[-1] is {int(offsets[-1])}, but there are {true_rows} rows",
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(f"invalid Routing: {message}")
