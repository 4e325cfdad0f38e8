"""`chosen_experts`: a `Routing` as a table with one line of experts per token.

Shape suffixes: T tokens, R rows, K experts listed per token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flan_moe.routing.contract import Routing


@torch.no_grad()
def chosen_experts(
    routing: Routing, max_choices: int | None = None, *, best_first: bool = False
) -> Tensor:
    """The experts that work on each token, after capacity.

    ``row t = sorted {e : token t has a row of expert e}``, padded with -1 on the right.

    Args:
        routing: any router's result; what lies past its true row count is not looked at.
        max_choices: K. A token with more experts keeps the first K in the order asked for.
            None: as many as the token with most experts has, at least 1; the host must wait for
            the device to know that number.
        best_first: order a token's experts by descending weight (ties: lowest index first)
            instead of ascending index.

    Returns:
        (T, K) int64 on the routing's device; -1 where a token has no further expert. A table
        like this is what `Router` takes as ``forced_experts``.

    Raises:
        ValueError: if ``max_choices`` is below 1.
    """
    num_tokens = routing.num_tokens
    if max_choices is None:
        count_T = routing.token_offsets.diff()
        max_choices = max(int(count_T.max()) if num_tokens else 0, 1)
    elif max_choices < 1:
        raise ValueError(f"max_choices={max_choices}: expected at least 1")
    position_R = torch.arange(routing.num_rows, device=routing.row_token_R.device)
    exists_R = position_R < routing.expert_offsets[-1]
    # Rows grouped by token, by expert within a token. Entries past the true count may hold
    # anything: they are pointed at row 0 and written to a cell that is cut off below.
    row_R = torch.where(exists_R, routing.token_row_R.long(), 0)
    if best_first:
        row_R = row_R.index_select(0, _best_first(routing, row_R, exists_R))
    token_R = routing.row_token_R.long().index_select(0, row_R)
    token_R = torch.where(exists_R, token_R, 0)
    expert_R = torch.searchsorted(routing.expert_offsets.long(), row_R, right=True) - 1
    offsets = routing.token_offsets.long()
    slot_R = position_R - (offsets[:-1].index_select(0, token_R) if num_tokens else 0)
    trash = num_tokens * max_choices
    cell_R = torch.where(exists_R & (slot_R < max_choices), token_R * max_choices + slot_R, trash)
    chosen_N = torch.full((trash + 1,), -1, dtype=torch.int64, device=position_R.device)
    chosen_N.scatter_(0, cell_R, expert_R)
    return chosen_N[:trash].reshape(num_tokens, max_choices)


def _best_first(routing: Routing, row_R: Tensor, exists_R: Tensor) -> Tensor:
    """The order that sorts each token's rows by weight and leaves the tokens where they are."""
    weight_R = routing.row_weight_R.detach().index_select(0, row_R)
    by_weight_R = torch.sort(weight_R, descending=True, stable=True).indices
    token_R = routing.row_token_R.long().index_select(0, row_R)
    token_R = torch.where(exists_R, token_R, routing.num_tokens)  # nonexistent rows stay behind
    by_token_R = torch.sort(token_R.index_select(0, by_weight_R), stable=True).indices
    return by_weight_R.index_select(0, by_token_R)
