"""`expert_ffn`: the functional form of the experts, on a backend of choice.

Shape suffixes: T tokens, R rows, D model width, E experts, F hidden width, H pre-activation width.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from flan_moe.experts.activations import Activation, get_activation
from flan_moe.experts.backend import MainGrads
from flan_moe.experts.choice import choose_backend
from flan_moe.experts.dropout import Dropout, draw_seed
from flan_moe.experts.ops import expert_ffn_forward, run_forward
from flan_moe.experts.reference import reference_ffn
from flan_moe.experts.weights import ExpertWeights
from flan_moe.routing import Routing

BACKENDS = ("auto", "reference", "grouped", "triton")


def expert_ffn(
    x_TD: Tensor,
    routing: Routing,
    weights: ExpertWeights,
    *,
    activation: str,
    dropout: float = 0.0,
    training: bool = False,
    scale_E: Tensor | None = None,
    main_grads: MainGrads | None = None,
    backend: str = "auto",
) -> Tensor:
    """Run each token through its experts and sum the results with the routing's weights.

    ``y_t = sum over rows r of t, with e the expert of r, of
    weight_r * scale_e * (dropout(act(x_t @ wi_e + bi_e)) @ wo_e + bo_e)``; a token without rows
    gives exactly zero.

    Args:
        x_TD: (T, D) tokens.
        routing: which expert works on which token; trusted, see `Routing.validate`.
        weights: of the experts, in the dtype of ``x_TD``, or in any floating dtype under autocast.
        activation: a key of `ACTIVATIONS`.
        dropout: probability of zeroing an element of the hidden activation (expert dropout).
        training: whether dropout is on. If so, one number is drawn from the default generator of
            the device of ``x_TD``, and every backend derives the same mask from it.
        scale_E: (E,) factors of the experts' outputs; None for ones.
        main_grads: buffers for the gradients of wi and wo, instead of returning them to autograd;
            not with ``"reference"``.
        backend: ``"reference"`` (the specification), ``"grouped"`` (any device), ``"triton"``
            (fused kernels, CUDA), or ``"auto"``, see `choose_backend`.

    Returns:
        (T, D) in the dtype of ``x_TD``, autocast or not; rows are summed in float32 or wider.

    Raises:
        ValueError: if shapes, dtypes, devices or options do not fit together.
        NotImplementedError: under forward-mode differentiation, except by ``"reference"``.
    """
    act = get_activation(activation)
    check_backend(backend)
    check_dropout(dropout)
    _check_tensors(x_TD, routing, weights, act)
    if scale_E is not None:
        routing = _scaled(routing, scale_E)
    draw = None
    if training and dropout > 0.0:
        draw = Dropout(draw_seed(x_TD.device), dropout)
    matmul_dtype = x_TD.dtype
    if torch.is_autocast_enabled(x_TD.device.type) and x_TD.dtype != torch.float64:
        matmul_dtype = torch.get_autocast_dtype(x_TD.device.type)
    if backend == "auto":
        backend = choose_backend(x_TD.device, matmul_dtype)
    if backend == "reference":
        if main_grads is not None:
            raise ValueError("main_grads: backend 'reference' returns its gradients to autograd")
        return reference_ffn(x_TD, routing, weights, act, draw, matmul_dtype)
    if main_grads is None:
        main_grads = MainGrads()
    _check_main_grads(main_grads, weights)
    inputs = (x_TD, *weights, routing.row_weight_R)
    _refuse_forward_mode(inputs)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    # Without gradients and tracing the operator would add nothing but its dispatch.
    plain = not keep and type(x_TD) is Tensor and not torch.compiler.is_compiling()
    run = run_forward if plain else expert_ffn_forward
    y_TD, _ = run(
        *inputs,
        routing.row_token_R,
        routing.expert_offsets,
        routing.token_offsets,
        routing.token_row_R,
        None if draw is None else draw.seed,
        *main_grads,
        dropout,
        activation,
        backend,
        matmul_dtype,
        keep,
    )
    return y_TD


def check_backend(backend: str) -> None:
    """Refuse an unknown backend with a ValueError that names the known ones."""
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}: expected one of {', '.join(map(repr, BACKENDS))}")


def check_dropout(dropout: float) -> None:
    """Refuse a dropout probability outside [0, 1] with a ValueError."""
    if not 0.0 <= dropout <= 1.0:
        raise ValueError(f"dropout={dropout!r}: expected a probability in [0, 1]")


def _scaled(routing: Routing, scale_E: Tensor) -> Routing:
    """The routing with each row's weight times its expert's factor, without a host read."""
    weight_R, ends_E = routing.row_weight_R, routing.expert_offsets[1:]
    if scale_E.shape != ends_E.shape:
        raise ValueError(f"scale of shape {tuple(scale_E.shape)}: expected {tuple(ends_E.shape)}")
    if scale_E.device != weight_R.device or not scale_E.is_floating_point():
        raise ValueError(
            f"scale: expected floating point on {weight_R.device}, got {scale_E.dtype} on "
            f"{scale_E.device}"
        )
    rows = torch.arange(weight_R.shape[0], device=weight_R.device, dtype=torch.int32)
    expert_R = torch.searchsorted(ends_E, rows, right=True, out_int32=True)
    expert_R = expert_R.clamp(max=routing.num_experts - 1)
    # An embedding sums its gradient in a fixed order on a GPU, indexing does not.
    scale_R = F.embedding(expert_R, scale_E[:, None])[:, 0]
    # Rows past the true count belong to no expert. What their weights happen to be is kept from
    # the gradient of the last one, for zero times infinity is not zero.
    weight_R = torch.where(rows < routing.expert_offsets[-1], weight_R, 0.0)
    return dataclasses.replace(routing, row_weight_R=weight_R * scale_R)


def _check_tensors(x_TD: Tensor, routing: Routing, weights: ExpertWeights, act: Activation) -> None:
    wi_EDH, wo_EFD = weights.wi_EDH, weights.wo_EFD
    if x_TD.ndim != 2 or wi_EDH.ndim != 3 or wo_EFD.ndim != 3:
        raise ValueError(
            f"expected x (T, D), wi (E, D, H), wo (E, F, D); got shapes {tuple(x_TD.shape)}, "
            f"{tuple(wi_EDH.shape)}, {tuple(wo_EFD.shape)}"
        )
    num_experts, d_model = wi_EDH.shape[0], x_TD.shape[1]
    d_ff = wo_EFD.shape[1]
    h_width = 2 * d_ff if act.gated else d_ff
    expected = {
        "wi": (num_experts, d_model, h_width),
        "wo": (num_experts, d_ff, d_model),
        "bi": (num_experts, h_width),
        "bo": (num_experts, d_model),
    }
    tensors = {name: t for name, t in zip(expected, weights, strict=True) if t is not None}
    if any(tuple(tensor.shape) != expected[name] for name, tensor in tensors.items()):
        wanted = ", ".join(f"{name} {expected[name]}" for name in tensors)
        got = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(
            f"weights do not fit: for x {tuple(x_TD.shape)}, activation {act.name!r} and "
            f"{num_experts} experts of hidden width {d_ff} expected {wanted}; got {got}"
        )
    if routing.num_experts != num_experts:
        raise ValueError(
            f"the routing is for {routing.num_experts} experts, the weights are of {num_experts}"
        )
    if routing.num_tokens != x_TD.shape[0]:
        raise ValueError(f"the routing is for {routing.num_tokens} tokens, x has {x_TD.shape[0]}")
    floats = {"x": x_TD, **tensors}
    devices = {name: t.device for name, t in floats.items()}
    devices["routing"] = routing.row_token_R.device
    if len(set(devices.values())) > 1:
        found = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"tensors must be on one device: {found}")
    found = ", ".join(f"{name} {t.dtype}" for name, t in floats.items())
    dtypes = {t.dtype for t in floats.values()}
    if not all(dtype.is_floating_point for dtype in dtypes):
        raise ValueError(f"tensors must be floating point: {found}")
    if len(dtypes) > 1 and not torch.is_autocast_enabled(x_TD.device.type):
        raise ValueError(f"outside autocast dtypes must agree: {found}")


def _refuse_forward_mode(inputs: tuple[Tensor | None, ...]) -> None:
    # torch itself would go on with tangents of zero, for any operator of a library.
    if torch.compiler.is_compiling():
        return
    if any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in inputs):
        raise NotImplementedError("expert_ffn: no forward-mode differentiation")


def _check_main_grads(main_grads: MainGrads, weights: ExpertWeights) -> None:
    for name, buffer, weight in (
        ("wi_EDH", main_grads.wi_EDH, weights.wi_EDH),
        ("wo_EFD", main_grads.wo_EFD, weights.wo_EFD),
    ):
        if buffer is None:
            continue
        dtype = torch.promote_types(weight.dtype, torch.float32)
        expected = (weight.shape, dtype, weight.device)
        if (buffer.shape, buffer.dtype, buffer.device) != expected:
            raise ValueError(
                f"main_grads.{name}: expected {tuple(weight.shape)} {dtype} on {weight.device}, "
                f"got {tuple(buffer.shape)} {buffer.dtype} on {buffer.device}"
            )
        if 0 in buffer.stride() and buffer.numel() > 1:
            raise ValueError(f"main_grads.{name}: expected memory of its own for every element")
    if main_grads.wi_EDH is not None and main_grads.wi_EDH is main_grads.wo_EFD:
        raise ValueError("main_grads: wi_EDH and wo_EFD are the same buffer")
