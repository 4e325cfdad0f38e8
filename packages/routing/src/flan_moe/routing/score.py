"""Router scores: float32 logits, and the multiplicative input jitter.

Shape suffixes: T tokens, D model width, E experts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def jittered(x_TD: Tensor, epsilon: float) -> Tensor:
    """A copy of ``x_TD`` multiplied elementwise by noise from U(1 - epsilon, 1 + epsilon).

    Source: Switch Transformer (Fedus et al. 2021, section 2.4). The argument is never written
    to: the experts must see the input without the noise.
    """
    return x_TD * torch.empty_like(x_TD).uniform_(1.0 - epsilon, 1.0 + epsilon)


def router_logits(x_TD: Tensor, weight_ED: Tensor, *, jitter: float = 0.0) -> Tensor:
    """Logits of every expert for every token, in float32 whatever the inputs' dtypes.

    Args:
        x_TD: (T, D) tokens, any floating dtype.
        weight_ED: (E, D) router weight, any floating dtype.
        jitter: amplitude of the input noise; 0 for none.

    Returns:
        (T, E) float32. Autocast is suspended: selecting experts is a discrete choice that
        bfloat16 rounding changes (ST-MoE, Zoph et al. 2022, section 3.4).
    """
    with torch.autocast(device_type=x_TD.device.type, enabled=False):
        x_TD = x_TD.float()
        if jitter > 0.0:
            x_TD = jittered(x_TD, jitter)
        return F.linear(x_TD, weight_ED.float())
