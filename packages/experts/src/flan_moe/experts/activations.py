"""Activations of an expert and their derivatives.

Each activation maps the pre-activation h_RH to the hidden a_RF. Backward is written out, because
the backends work outside autograd; it uses torch's own derivative kernels.

Shape suffixes: R rows, F hidden width, H = 2F for gated activations, else F.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

_aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Pointwise:
    """An elementwise function and its gradient.

    Attributes:
        name: what kernels call it.
        function: made of differentiable torch operations.
        gradient: from the gradient of the output, and the input (the output if ``of_output``), the
            gradient of the input.
        of_output: whether ``gradient`` takes the output. An output of zero must then mean a
            gradient of zero.
        function_: ``function`` in place; required if ``of_output``.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor], Tensor]
    of_output: bool = False
    function_: Callable[[Tensor], Tensor] | None = None

    def vjp(self, h: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The output and the map from its gradient to that of ``h``."""
        out = self.function(h)
        return out, lambda d_out: self.gradient(d_out, out if self.of_output else h)


@dataclass(frozen=True, kw_only=True)
class Activation:
    """From the pre-activation h_RH to the hidden a_RF.

    Attributes:
        name: its key in `ACTIVATIONS`.
        act: what is applied to h, or, if gated, to its first half.
        gated: whether H = 2F and the result is ``act(gate) * linear`` for the halves of h
            (Shazeer 2020, GLU variants), as opposed to H = F.
    """

    name: str
    act: Pointwise
    gated: bool = False

    @property
    def keeps_output(self) -> bool:
        """Whether the output alone tells the gradient, so that only it lives until backward."""
        return self.act.of_output and not self.gated

    def forward(self, h_RH: Tensor) -> Tensor:
        """The hidden activation a_RF, differentiably."""
        if not self.gated:
            return self.act.function(h_RH)
        gate_RF, linear_RF = h_RH.chunk(2, dim=-1)
        return self.act.function(gate_RF) * linear_RF

    def forward_(self, h_RH: Tensor) -> Tensor:
        """As `forward`, outside autograd; in the memory of ``h_RH`` if ``keeps_output``."""
        return self.act.function_(h_RH) if self.keeps_output else self.forward(h_RH)

    def vjp(self, h_RH: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The hidden a_RF and the map from its gradient to that of ``h_RH``; not differentiable."""
        if not self.gated:
            return self.act.vjp(h_RH)
        gate_RF, linear_RF = h_RH.chunk(2, dim=-1)
        activated_RF, gate_pullback = self.act.vjp(gate_RF)

        def pullback(da_RF: Tensor) -> Tensor:
            dh_RH = torch.empty_like(h_RH)
            dgate_RF, dlinear_RF = dh_RH.chunk(2, dim=-1)
            torch.mul(da_RF, activated_RF, out=dlinear_RF)
            dgate_RF.copy_(gate_pullback(da_RF * linear_RF))
            return dh_RH

        return activated_RF * linear_RF, pullback


RELU = Pointwise(
    name="relu",
    function=F.relu,
    gradient=lambda d_out, out: _aten.threshold_backward(d_out, out, 0.0),
    of_output=True,
    function_=torch.relu_,
)
RELU2 = Pointwise(
    name="relu2",
    function=lambda h: F.relu(h).square(),
    gradient=lambda d_out, out: d_out * out.sqrt().mul_(2.0),
    of_output=True,
    function_=lambda h: h.relu_().square_(),
)
SILU = Pointwise(name="silu", function=F.silu, gradient=_aten.silu_backward)
GELU = Pointwise(
    name="gelu",
    function=lambda h: F.gelu(h, approximate="tanh"),
    gradient=lambda d_out, h: _aten.gelu_backward(d_out, h, approximate="tanh"),
)
GELU_EXACT = Pointwise(name="gelu_exact", function=F.gelu, gradient=_aten.gelu_backward)

ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        activation.name: activation
        for activation in (
            *(Activation(name=act.name, act=act) for act in (RELU, RELU2, SILU, GELU, GELU_EXACT)),
            Activation(name="reglu", act=RELU, gated=True),
            Activation(name="geglu", act=GELU, gated=True),
            Activation(name="geglu_exact", act=GELU_EXACT, gated=True),
            Activation(name="swiglu", act=SILU, gated=True),
        )
    }
)
"""Activations by name. ``relu`` is Switch's and original T5's. ``gelu`` and ``geglu`` use the tanh
approximation (Hugging Face's ``gelu_new``), as T5 v1.1 does; ``gelu_exact`` and ``geglu_exact``
the error function. ``relu2`` is the square of ReLU (So et al. 2021, Primer)."""


def get_activation(name: str) -> Activation:
    """Look up an activation.

    Raises:
        ValueError: naming the value and the known names.
    """
    if name not in ACTIVATIONS:
        raise ValueError(
            f"activation={name!r}: expected one of {', '.join(map(repr, ACTIVATIONS))}"
        )
    return ACTIVATIONS[name]
