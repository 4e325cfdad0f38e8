"""The activations of `flan_moe.experts.activations` on tiles in float32, by name.

``value_and_slope`` gives the function and its derivative; for those whose output tells the
derivative (`Activation.keeps_output`), ``slope_from_output`` takes that instead.
"""

# ruff: noqa: ANN001, ANN201 - what a kernel takes is annotated by Triton alone

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activate(h, ACT: tl.constexpr):
    """``ACT`` of h. NaN stays NaN, as in torch."""
    value, _ = value_and_slope(h, ACT)
    return value


@triton.jit
def value_and_slope(h, ACT: tl.constexpr):
    """``ACT`` of h and its derivative there."""
    if ACT == "relu":
        value = tl.where(h <= 0, 0.0, h)
        slope = tl.where(h <= 0, 0.0, 1.0)
    elif ACT == "relu2":
        positive = tl.where(h <= 0, 0.0, h)
        value = positive * positive
        slope = 2.0 * positive
    elif ACT == "silu":
        gate = tl.sigmoid(h)
        value = h * gate
        slope = gate * (1.0 + h * (1.0 - gate))
    elif ACT == "gelu":
        # 0.5 (1 + tanh u) = sigmoid(2 u), and 2 u = h (c0 + c1 h^2).
        square = h * h
        gate = tl.sigmoid(h * (1.5957691216057308 + 0.07135481627260025 * square))
        value = h * gate
        inner = 1.5957691216057308 + 3.0 * 0.07135481627260025 * square
        slope = gate * (1.0 + h * (1.0 - gate) * inner)
    else:
        tl.static_assert(ACT == "gelu_exact", "unknown activation")
        gate = 0.5 * (1.0 + tl.erf(h * 0.7071067811865476))
        value = h * gate
        slope = gate + h * 0.3989422804014327 * tl.exp(-0.5 * h * h)
    return value, slope


@triton.jit
def slope_from_output(a, ACT: tl.constexpr):
    """The derivative of ``ACT`` where its value is a."""
    if ACT == "relu":
        slope = tl.where(a <= 0, 0.0, 1.0)
    else:
        tl.static_assert(ACT == "relu2", "unknown activation")
        slope = 2.0 * tl.sqrt(a)
    return slope
