"""A linear map that knows its initial standard deviation, and is quick for a step of generation.

Shape suffixes: N rows, I width of the input, O width of the output.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Measured with MKL on AVX-512 cores: with 7 to 32 rows, sgemm reads a weight of a million elements
# or more 1.0 to 1.6 times as fast from the left as from the right (a smaller one down to 0.7 times
# as fast); below 7 rows it has kernels of its own, and beyond 32 the transposition of the result
# costs what is gained.
_FEWEST_ROWS, _MOST_ROWS = 7, 32
_SMALLEST_WEIGHT = 1 << 20


class Projection(nn.Linear):
    """`torch.nn.Linear` without bias, initialised from N(0, std).

    T5 gives every projection its own scale. It is kept here, with the weight, because
    transformers 5 initialises only modules that own a weight: a parent is never asked.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        std: initial standard deviation.
    """

    def __init__(self, in_features: int, out_features: int, *, std: float) -> None:
        self.std = std
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O)."""
        if not torch.compiler.is_compiling() and _pays_from_the_left(x, self.weight):
            return torch.mm(self.weight, x.t()).t().contiguous()
        return super().forward(x)

    def reset_parameters(self) -> None:
        """Draw the weight anew."""
        nn.init.normal_(self.weight, std=self.std)


def _pays_from_the_left(x: Tensor, weight_OI: Tensor) -> bool:
    """Whether ``(W x^T)^T`` is faster than ``x W^T``: a few rows on the CPU, without gradient."""
    return (
        x.ndim == 2
        and _FEWEST_ROWS <= x.shape[0] <= _MOST_ROWS
        and x.dtype == weight_OI.dtype == torch.float32
        and weight_OI.numel() >= _SMALLEST_WEIGHT
        and x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )
