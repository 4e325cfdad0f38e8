"""Shared experts: a feed-forward network that every token passes, beside the routed ones.

Shape suffixes: T tokens, D model width, F hidden width, H = 2F for gated activations, else F.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flan_moe.experts.activations import get_activation
from flan_moe.experts.ffn import check_dropout
from flan_moe.experts.sizes import check_sizes


class SharedExperts(nn.Module):
    """S always-on experts of hidden width F, which are one network of width S * F.

    ``gate(x) * (dropout(act(x @ wi + bi)) @ wo + bo)``; the gate, if any, is
    ``sigmoid(x @ gate)``, one factor per token as in Qwen2-MoE, else 1 as in DeepSeekMoE.

    Args:
        d_model: D.
        d_ff: S * F.
        activation: a key of `ACTIVATIONS`.
        dropout: on the hidden activation, in training.
        bias: whether there are bi and bo.
        gated_output: whether there is a gate.
        device: where to make the parameters.
        dtype: of the parameters.

    Attributes:
        wi: (D, H) parameter, laid out as one expert of `ExpertWeights`.
        wo: (F, D) parameter.
        bi: (H,) parameter or None.
        bo: (D,) parameter or None.
        gate: (D,) parameter or None.

    Raises:
        ValueError: naming the option, its value and what was expected.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        *,
        activation: str = "geglu",
        dropout: float = 0.0,
        bias: bool = False,
        gated_output: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(d_model=d_model, d_ff=d_ff)
        check_dropout(dropout)
        h_width = 2 * d_ff if get_activation(activation).gated else d_ff
        self.activation = activation  # the name: the functions behind it cannot be pickled
        self.dropout = dropout

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.wi, self.wo = parameter(d_model, h_width), parameter(d_ff, d_model)
        self.bi = parameter(h_width) if bias else None
        self.bo = parameter(d_model) if bias else None
        self.gate = parameter(d_model) if gated_output else None
        self.reset_parameters()

    def reset_parameters(self, init_factor: float = 1.0) -> None:
        """Weights as in `Experts.reset_parameters`; the gate as ``wi``."""
        d_model, d_ff = self.wi.shape[0], self.wo.shape[0]
        nn.init.normal_(self.wi, std=init_factor * d_model**-0.5)
        nn.init.normal_(self.wo, std=init_factor * d_ff**-0.5)
        for bias in (self.bi, self.bo):
            if bias is not None:
                nn.init.zeros_(bias)
        if self.gate is not None:
            nn.init.normal_(self.gate, std=init_factor * d_model**-0.5)

    def forward(self, x_TD: Tensor) -> Tensor:
        """(T, D) to (T, D), in the dtype of ``x_TD``."""
        h_TH = F.linear(x_TD, self.wi.T, self.bi)
        a_TF = get_activation(self.activation).forward(h_TH)
        a_TF = F.dropout(a_TF, self.dropout, self.training)
        y_TD = F.linear(a_TF, self.wo.T, self.bo)
        if self.gate is not None:
            y_TD = y_TD * torch.sigmoid(x_TD @ self.gate)[:, None]
        return y_TD.to(x_TD.dtype)

    def extra_repr(self) -> str:
        """Sizes and options, for ``print(model)``."""
        d_ff, d_model = self.wo.shape
        return (
            f"d_model={d_model}, d_ff={d_ff}, activation={self.activation!r}, "
            f"dropout={self.dropout}, bias={self.bi is not None}, "
            f"gated_output={self.gate is not None}"
        )
