"""Activations of an expert and their derivatives.

Each activation maps the pre-activation h_RH to the hidden a_RF. Backward is written out, because
the grouped backend works outside autograd; it uses torch's own derivative kernels.

Shape suffixes: R rows, F hidden width, H = 2F for gated activations, else F.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

_aten = torch.ops.aten


class Activation(ABC):
    """From pre-activation to hidden activation, forward and backward.

    Attributes:
        gated: whether H = 2F, as opposed to H = F.
        keeps_output: whether `vjp` starts from the output a_RF rather than from h_RH; then only
            the output has to live until the backward pass.
    """

    gated: bool = False
    keeps_output: bool = False

    @abstractmethod
    def forward(self, h_RH: Tensor) -> Tensor:
        """The hidden activation a_RF; made of differentiable torch operations."""

    def forward_(self, h_RH: Tensor) -> Tensor:
        """As `forward`, outside autograd; may overwrite ``h_RH`` if `vjp` does not want it."""
        return self.forward(h_RH)

    @abstractmethod
    def vjp(self, kept: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The hidden activation a_RF again, and the map from its gradient to that of h_RH.

        Args:
            kept: a_RF if ``keeps_output``, else h_RH; not written to.
        """


class ReLU(Activation):
    """``max(h, 0)``: Switch Transformer, original T5."""

    keeps_output = True

    def forward(self, h_RH: Tensor) -> Tensor:
        """See `Activation.forward`."""
        return F.relu(h_RH)

    def forward_(self, h_RH: Tensor) -> Tensor:
        """See `Activation.forward_`."""
        return h_RH.relu_()

    def vjp(self, kept: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """See `Activation.vjp`; the output is positive exactly where h was."""
        return kept, lambda da_RF: _aten.threshold_backward(da_RF, kept, 0.0)


class GELU(Activation):
    """GELU in the tanh approximation, Hugging Face's ``gelu_new``."""

    def forward(self, h_RH: Tensor) -> Tensor:
        """See `Activation.forward`."""
        return F.gelu(h_RH, approximate="tanh")

    def vjp(self, kept: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """See `Activation.vjp`."""
        return self.forward(kept), lambda da_RF: _aten.gelu_backward(
            da_RF, kept, approximate="tanh"
        )


class SiLU(Activation):
    """``h * sigmoid(h)``."""

    def forward(self, h_RH: Tensor) -> Tensor:
        """See `Activation.forward`."""
        return F.silu(h_RH)

    def vjp(self, kept: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """See `Activation.vjp`."""
        return self.forward(kept), lambda da_RF: _aten.silu_backward(da_RF, kept)


class Gated(Activation):
    """``act(gate) * linear`` for the halves gate, linear of h (Shazeer 2020, GLU variants)."""

    gated = True

    def __init__(self, act: Activation) -> None:
        self._act = act

    def forward(self, h_RH: Tensor) -> Tensor:
        """See `Activation.forward`."""
        gate_RF, linear_RF = h_RH.chunk(2, dim=-1)
        return self._act.forward(gate_RF) * linear_RF

    def vjp(self, kept: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """See `Activation.vjp`."""
        gate_RF, linear_RF = kept.chunk(2, dim=-1)
        activated_RF, gate_pullback = self._act.vjp(gate_RF)

        def pullback(da_RF: Tensor) -> Tensor:
            dh_RH = torch.empty_like(kept)
            dgate_RF, dlinear_RF = dh_RH.chunk(2, dim=-1)
            torch.mul(da_RF, activated_RF, out=dlinear_RF)
            dgate_RF.copy_(gate_pullback(da_RF * linear_RF))
            return dh_RH

        return activated_RF * linear_RF, pullback


ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {"relu": ReLU(), "gelu": GELU(), "geglu": Gated(GELU()), "swiglu": Gated(SiLU())}
)
"""Activations by name. ``gelu`` and ``geglu`` use the tanh approximation, as T5 v1.1 does."""


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
