"""Activations of an expert and their derivatives.

Each activation maps the pre-activation h_RH to the hidden a_RF. Backward is written out, because
the grouped backend works outside autograd; it uses torch's own derivative kernels.

Shape suffixes: R rows, F hidden width, H = 2F for gated activations, else F.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

_aten = torch.ops.aten


class Activation(ABC):
    """From pre-activation to hidden activation, forward and backward.

    Attributes:
        gated: whether H = 2F, as opposed to H = F.
        backward_from_output: whether `backward` wants the output a_RF in place of h_RH; then only
            the output has to be kept for the backward pass.
    """

    gated: bool = False
    backward_from_output: bool = False

    @abstractmethod
    def forward(self, h_RH: Tensor) -> Tensor:
        """The hidden activation a_RF; made of differentiable torch operations."""

    @abstractmethod
    def backward(self, da_RF: Tensor, saved: Tensor) -> Tensor:
        """The gradient of h_RH, given that of a_RF and h_RH (or a_RF) itself."""


class ReLU(Activation):
    """``max(h, 0)``: Switch Transformer, original T5."""

    backward_from_output = True

    def forward(self, h_RH: Tensor) -> Tensor:
        """See `Activation.forward`."""
        return F.relu(h_RH)

    def backward(self, da_RF: Tensor, saved: Tensor) -> Tensor:
        """See `Activation.backward`; ``saved`` is the output, positive where h was."""
        return _aten.threshold_backward(da_RF, saved, 0.0)


class GELU(Activation):
    """GELU in the tanh approximation, Hugging Face's ``gelu_new``."""

    def forward(self, h_RH: Tensor) -> Tensor:
        """See `Activation.forward`."""
        return F.gelu(h_RH, approximate="tanh")

    def backward(self, da_RF: Tensor, saved: Tensor) -> Tensor:
        """See `Activation.backward`."""
        return _aten.gelu_backward(da_RF, saved, approximate="tanh")


class SiLU(Activation):
    """``h * sigmoid(h)``."""

    def forward(self, h_RH: Tensor) -> Tensor:
        """See `Activation.forward`."""
        return F.silu(h_RH)

    def backward(self, da_RF: Tensor, saved: Tensor) -> Tensor:
        """See `Activation.backward`."""
        return _aten.silu_backward(da_RF, saved)


class Gated(Activation):
    """``act(gate) * linear`` for the halves gate, linear of h (Shazeer 2020, GLU variants)."""

    gated = True

    def __init__(self, act: Activation) -> None:
        self._act = act

    def forward(self, h_RH: Tensor) -> Tensor:
        """See `Activation.forward`."""
        gate_RF, linear_RF = h_RH.chunk(2, dim=-1)
        return self._act.forward(gate_RF) * linear_RF

    def backward(self, da_RF: Tensor, saved: Tensor) -> Tensor:
        """See `Activation.backward`."""
        gate_RF, linear_RF = saved.chunk(2, dim=-1)
        dh_RH = torch.empty_like(saved)
        dgate_RF, dlinear_RF = dh_RH.chunk(2, dim=-1)
        dgate_RF.copy_(self._act.backward(da_RF * linear_RF, gate_RF))
        torch.mul(da_RF, self._act.forward(gate_RF), out=dlinear_RF)
        return dh_RH


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
