"""What a backend takes and gives: one forward and one backward function over raw tensors.

A backend computes, for the rows r of token t and the expert e of each row,

    y_t = sum over r of weight_r * (dropout(act(x_t @ wi_e + bi_e)) @ wo_e + bo_e)

and its gradients, outside autograd. `ops` makes differentiable operators of it.

Shape suffixes: T tokens, R rows, E experts, D model width, F hidden width, H pre-activation width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from flan_moe.experts.activations import Activation
from flan_moe.experts.dropout import Dropout
from flan_moe.experts.weights import ExpertWeights


class RowIndex(NamedTuple):
    """The integer side of a `flan_moe.routing.Routing`; see there."""

    row_token_R: Tensor
    expert_offsets: Tensor
    token_offsets: Tensor
    token_row_R: Tensor


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is not a tensor.

    Attributes:
        activation: between the two products.
        dropout: the draw to use on the hidden activation, or None.
        matmul_dtype: dtype of the operands of the matrix products; the autocast dtype under
            autocast. Products accumulate in float32 or wider, whatever it is.
    """

    activation: Activation
    dropout: Dropout | None
    matmul_dtype: torch.dtype


class Wanted(NamedTuple):
    """Which gradients a backward pass is to compute."""

    x: bool
    wi: bool
    wo: bool
    bi: bool
    bo: bool
    row_weight: bool


class MainGrads(NamedTuple):
    """Lasting buffers that receive the weight gradients, instead of fresh tensors for autograd.

    They are float32 (float64 for float64 weights) whatever the weights are, and spare the operating
    system from handing out as many fresh pages as the weights have at every step, which on a CPU
    costs more than computing the gradients of many small experts.

    Attributes:
        wi_EDH: as the weight in shape; None to return that gradient to autograd.
        wo_EFD: the same.
        accumulate: whether to add to what a buffer holds, or to overwrite it. Overwriting suits
            one backward pass per optimizer step, and needs no zeroing.
    """

    wi_EDH: Tensor | None = None
    wo_EFD: Tensor | None = None
    accumulate: bool = True


class Gradients(NamedTuple):
    """One gradient for each of `Wanted`, in its dtype; None where not wanted or written elsewhere.

    They are contiguous, whatever the strides of what they are the gradient of. ``row_weight_R`` is
    zero past the true row count.
    """

    x_TD: Tensor | None
    wi_EDH: Tensor | None
    wo_EFD: Tensor | None
    bi_EH: Tensor | None
    bo_ED: Tensor | None
    row_weight_R: Tensor | None


class Backend(Protocol):
    """A module or object with these two functions."""

    def forward(
        self,
        x_TD: Tensor,
        weights: ExpertWeights,
        row_weight_R: Tensor,
        index: RowIndex,
        options: Options,
        *,
        keep: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """The output (T, D) in the dtype of ``x_TD``, and what the backward pass needs.

        That is, in ``matmul_dtype``, the pre-activation h_RH, or, for activations with
        ``keeps_output``, the hidden activation a_RF after dropout; None unless ``keep``. Its
        rows past the true row count are undefined.
        """
        ...

    def backward(
        self,
        dy_TD: Tensor,
        x_TD: Tensor | None,
        kept: Tensor,
        weights: ExpertWeights,
        row_weight_R: Tensor,
        index: RowIndex,
        options: Options,
        wanted: Wanted,
        main_grads: MainGrads,
    ) -> Gradients:
        """The gradients; writes those that have ``main_grads`` there.

        ``x_TD`` may be None unless ``wanted.wi``; ``dy_TD`` has its dtype, and so has its gradient.
        """
        ...
