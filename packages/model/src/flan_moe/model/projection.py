"""A linear map that knows its initial standard deviation."""

from __future__ import annotations

from torch import nn


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

    def reset_parameters(self) -> None:
        """Draw the weight anew."""
        nn.init.normal_(self.weight, std=self.std)
