"""The weights of a set of experts.

Shape suffixes: E experts, D model width, F hidden width, H = 2F for gated activations, else F.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ExpertWeights(NamedTuple):
    """Two stacked matrices and, where wanted, two stacked biases: one slice per expert.

    Attributes:
        wi_EDH: (E, D, H), from the model to the hidden width. For gated activations the first F
            columns make the activated gate (T5's ``wi_0``) and the last F the linear factor
            (``wi_1``).
        wo_EFD: (E, F, D), from the hidden to the model width.
        bi_EH: (E, H), added to the pre-activation; None (as in T5) for no bias.
        bo_ED: (E, D), added to an expert's output before the row's weight; None for no bias.
    """

    wi_EDH: Tensor
    wo_EFD: Tensor
    bi_EH: Tensor | None = None
    bo_ED: Tensor | None = None
