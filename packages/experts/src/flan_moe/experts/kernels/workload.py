"""What tile sizes are tuned for: a layer and the batch that it sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flan_moe.experts.activations import get_activation
from flan_moe.experts.kernels.table import DTYPES


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A layer and a batch.

    Attributes:
        width: D.
        hidden: F.
        experts: E.
        tokens: T.
        choices: experts per token, so that R = T * choices.
        activation: a key of `flan_moe.experts.ACTIVATIONS`.
        dtype: of the operands.
        weight_dtype: in which the weights are stored.
    """

    width: int
    hidden: int
    experts: int
    tokens: int
    choices: int
    activation: str
    dtype: torch.dtype
    weight_dtype: torch.dtype

    @property
    def rows(self) -> int:
        """R."""
        return self.tokens * self.choices

    @property
    def gated(self) -> bool:
        """Whether the activation is."""
        return get_activation(self.activation).gated


def parse_workload(text: str) -> Workload:
    """A workload from ``D,F,E,T,K,ACTIVATION,DTYPE``, as "1024,2816,32,32768,2,geglu,bfloat16".

    The dtype of the weights may follow, as ",float32" for training under autocast.

    Raises:
        ValueError: naming the text, if it is not of that form.
    """
    dtypes = {name: dtype for dtype, name in DTYPES.items()}
    parts = text.split(",")
    known = len(parts) in (7, 8) and all(part in dtypes for part in parts[6:])
    if not known or not all(part.isdecimal() for part in parts[:5]):
        raise ValueError(
            f"{text!r}: expected D,F,E,T,K,ACTIVATION,DTYPE[,WEIGHT_DTYPE] with dtypes of "
            f"{', '.join(dtypes)}"
        )
    width, hidden, experts, tokens, choices = map(int, parts[:5])
    if not 0 < choices <= experts or 0 in (width, hidden, tokens):
        raise ValueError(f"{text!r}: expected sizes of at least 1 and K of at most E")
    return Workload(
        width=width,
        hidden=hidden,
        experts=experts,
        tokens=tokens,
        choices=choices,
        activation=get_activation(parts[5]).name,
        dtype=dtypes[parts[6]],
        weight_dtype=dtypes[parts[-1]],
    )
