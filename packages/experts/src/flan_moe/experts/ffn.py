"""`expert_ffn`: the functional form of the experts, on a backend of choice.

Shape suffixes: T tokens, D model width, E experts, F hidden width, H pre-activation width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flan_moe.experts.activations import Activation, get_activation
from flan_moe.experts.dropout import draw_dropout
from flan_moe.experts.grouped import grouped_ffn
from flan_moe.experts.reference import reference_ffn
from flan_moe.experts.weights import ExpertWeights
from flan_moe.routing import Routing

BACKENDS = ("auto", "reference", "grouped")


def expert_ffn(
    x_TD: Tensor,
    routing: Routing,
    weights: ExpertWeights,
    *,
    activation: str,
    dropout: float = 0.0,
    training: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Run each token through its experts and sum the results with the routing's weights.

    ``y_t = sum over rows r of t of weight_r * dropout(act(x_t @ wi_e(r))) @ wo_e(r)``; a token
    without rows gives exactly zero.

    Args:
        x_TD: (T, D) tokens.
        routing: which expert works on which token; trusted, see `Routing.validate`.
        weights: of the experts, in the dtype of ``x_TD``, or in any floating dtype under autocast.
        activation: a key of `ACTIVATIONS`.
        dropout: probability of zeroing an element of the hidden activation (expert dropout).
        training: whether dropout is on. If so, one number is drawn from torch's CPU generator,
            and both backends derive the same mask from it.
        backend: ``"reference"`` (the specification), ``"grouped"`` (fast), or ``"auto"``, which
            is ``"grouped"``.

    Returns:
        (T, D) in the dtype of ``x_TD``, autocast or not; rows are summed in float32 or wider.

    Raises:
        ValueError: if shapes, dtypes, devices or options do not fit together.
    """
    act = get_activation(activation)
    check_backend(backend)
    check_dropout(dropout)
    _check_tensors(x_TD, routing, weights, act, activation)
    draw = draw_dropout(dropout) if training and dropout > 0.0 else None
    run = reference_ffn if backend == "reference" else grouped_ffn
    return run(x_TD, routing, weights, act, draw)


def check_backend(backend: str) -> None:
    """Refuse an unknown backend with a ValueError that names the known ones."""
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}: expected one of {', '.join(map(repr, BACKENDS))}")


def check_dropout(dropout: float) -> None:
    """Refuse a dropout probability outside [0, 1] with a ValueError."""
    if not 0.0 <= dropout <= 1.0:
        raise ValueError(f"dropout={dropout!r}: expected a probability in [0, 1]")


def _check_tensors(
    x_TD: Tensor, routing: Routing, weights: ExpertWeights, act: Activation, activation: str
) -> None:
    wi_EDH, wo_EFD = weights
    if x_TD.ndim != 2 or wi_EDH.ndim != 3 or wo_EFD.ndim != 3:
        raise ValueError(
            f"expected x (T, D), wi (E, D, H), wo (E, F, D); got shapes {tuple(x_TD.shape)}, "
            f"{tuple(wi_EDH.shape)}, {tuple(wo_EFD.shape)}"
        )
    num_experts, d_model, h_width = wi_EDH.shape
    d_ff = wo_EFD.shape[1]
    expected_wi = (num_experts, x_TD.shape[1], 2 * d_ff if act.gated else d_ff)
    expected_wo = (num_experts, d_ff, d_model)
    if (num_experts, d_model, h_width) != expected_wi or tuple(wo_EFD.shape) != expected_wo:
        raise ValueError(
            f"weights do not fit: for x {tuple(x_TD.shape)}, activation {activation!r} and wo "
            f"{tuple(wo_EFD.shape)} expected wi {expected_wi} and wo {expected_wo}, got wi "
            f"{tuple(wi_EDH.shape)}"
        )
    if routing.num_experts != num_experts:
        raise ValueError(
            f"the routing is for {routing.num_experts} experts, the weights are of {num_experts}"
        )
    if routing.num_tokens != x_TD.shape[0]:
        raise ValueError(f"the routing is for {routing.num_tokens} tokens, x has {x_TD.shape[0]}")
    devices = {
        "x": x_TD.device,
        "wi": wi_EDH.device,
        "wo": wo_EFD.device,
        "routing": routing.row_token_R.device,
    }
    if len(set(devices.values())) > 1:
        found = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"tensors must be on one device: {found}")
    dtypes = {x_TD.dtype, wi_EDH.dtype, wo_EFD.dtype}
    if not all(dtype.is_floating_point for dtype in dtypes):
        raise ValueError(
            f"x, wi and wo must be floating point, not {x_TD.dtype}, {wi_EDH.dtype}, {wo_EFD.dtype}"
        )
    if len(dtypes) > 1 and not torch.is_autocast_enabled(x_TD.device.type):
        raise ValueError(
            f"x is {x_TD.dtype}, wi {wi_EDH.dtype}, wo {wo_EFD.dtype}: outside autocast they must "
            f"agree"
        )
