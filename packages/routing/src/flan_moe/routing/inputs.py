"""Refusing inputs that do not fit a router.

Shape suffixes: T tokens, D model width, E experts, K choices per token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from flan_moe.routing.router import Router


def check_inputs(
    router: Router,
    x_TD: Tensor,
    sequence_T: Tensor | None,
    token_id_T: Tensor | None,
    forced_experts: Tensor | None,
) -> None:
    """Check shapes and dtypes; values too where that does not wait for a device.

    Raises:
        ValueError: naming the argument, what it is and what was expected.
    """
    given = {
        "sequence_T": sequence_T,
        "token_id_T": token_id_T,
        "forced_experts": forced_experts,
    }
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in {"router input": x_TD, **given}.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} is of type {type(value).__name__}; expected a tensor")
    if x_TD.ndim != 2 or x_TD.shape[1] != router.d_model:
        raise ValueError(
            f"router input has shape {tuple(x_TD.shape)}; expected (tokens, {router.d_model})"
        )
    if not x_TD.is_floating_point():
        raise ValueError(f"router input is {x_TD.dtype}; expected a floating dtype")
    for name, ids_T in (("sequence_T", sequence_T), ("token_id_T", token_id_T)):
        if ids_T is not None and ids_T.shape != x_TD.shape[:1]:
            raise ValueError(f"{name} has shape {tuple(ids_T.shape)}; expected ({x_TD.shape[0]},)")
    if sequence_T is not None and router.config.balance_scope == "sequence":
        _check_integers("sequence_T", sequence_T, x_TD.shape[0], "the number of tokens")
    if forced_experts is not None:
        _check_forced(forced_experts, x_TD.shape[0], router.num_experts)
    elif router.config.selection == "hash":
        if token_id_T is None:
            raise ValueError("token_id_T is None; hash routing needs the token ids")
        _check_integers("token_id_T", token_id_T, router.config.vocab_size, "vocab_size")


def check_finite(logits_TE: Tensor) -> None:
    """Refuse logits that are not finite, naming the first token; waits for the device.

    Raises:
        ValueError: a logit is NaN or infinite.
    """
    bad_T = ~logits_TE.detach().isfinite().all(dim=-1)
    if bool(bad_T.any()):
        token = int(bad_T.nonzero()[0])
        raise ValueError(
            f"router logits of token {token} are not finite: {logits_TE[token].tolist()} "
            f"({int(bad_T.sum())} such tokens)"
        )


def _check_integers(name: str, ids_T: Tensor, limit: int, what: str) -> None:
    if ids_T.is_floating_point() or ids_T.dtype == torch.bool:
        raise ValueError(f"{name} is {ids_T.dtype}; expected an integer dtype")
    if _may_read(ids_T):
        low, high = int(ids_T.min()), int(ids_T.max())
        if low < 0 or high >= limit:
            raise ValueError(f"{name} holds {low}..{high}; expected 0 to below {what}, {limit}")


def _check_forced(forced_TK: Tensor, num_tokens: int, num_experts: int) -> None:
    if forced_TK.ndim != 2 or forced_TK.shape[0] != num_tokens or forced_TK.shape[1] == 0:
        raise ValueError(
            f"forced_experts has shape {tuple(forced_TK.shape)}; expected "
            f"({num_tokens}, experts per token), at least one"
        )
    if forced_TK.is_floating_point() or forced_TK.dtype == torch.bool:
        raise ValueError(f"forced_experts is {forced_TK.dtype}; expected an integer dtype")
    if _may_read(forced_TK):
        highest = int(forced_TK.max())
        if highest >= num_experts:
            raise ValueError(f"forced_experts names expert {highest}; there are {num_experts}")
        sorted_TK = forced_TK.sort(dim=-1).values
        repeated = (sorted_TK[:, 1:] == sorted_TK[:, :-1]) & (sorted_TK[:, 1:] >= 0)
        if bool(repeated.any()):
            token = int(repeated.any(dim=-1).nonzero()[0])
            raise ValueError(
                f"forced_experts names an expert twice for token {token}: "
                f"{forced_TK[token].tolist()}"
            )


def _may_read(values: Tensor) -> bool:
    """Whether reading values costs no wait: on the CPU, and not while a graph is captured."""
    return values.device.type == "cpu" and values.numel() > 0 and not torch.compiler.is_compiling()
