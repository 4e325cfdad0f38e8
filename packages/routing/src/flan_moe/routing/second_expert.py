"""Whether a token's second expert takes part: policies of GShard, ST-MoE and NLLB-MoE.

Shape suffixes: T tokens, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sampled_second(scores_TE: Tensor, logits_TE: Tensor) -> Tensor:
    """The best expert, and one drawn from the softmax of the logits of all others.

    Drawn with the Gumbel trick, on a copy of the logits (DeepSpeed, NLLB-MoE ``"sampling"``; both
    add the noise in place, and so to the weights and losses as well).

    Args:
        scores_TE: (T, E) scores that decide the first.
        logits_TE: (T, E).

    Returns:
        (T, 2) int64.
    """
    first_T1 = scores_TE.argmax(dim=-1, keepdim=True)
    gumbel_TE = -torch.empty_like(logits_TE).exponential_().log()
    others_TE = (logits_TE + gumbel_TE).clamp(min=torch.finfo(logits_TE.dtype).min)
    others_TE = others_TE.scatter(-1, first_T1, -torch.inf)  # it alone, whatever the logits are
    return torch.cat([first_T1, others_TE.argmax(dim=-1, keepdim=True)], dim=-1)


def second_takes_part(share_T: Tensor, policy: str, threshold: float) -> Tensor:
    """Whether the second expert of each token takes part.

    Args:
        share_T: (T,) the second's share of the two gates, g2 / (g1 + g2).
        policy: ``"threshold"``: if the share is above the threshold. ``"random"``: with probability
            min(1, share / threshold): 0.2 is ST-MoE's and Mesh TensorFlow's, 0.5 GShard's 2 * g2.
        threshold: see there.

    Returns:
        (T,) bool.
    """
    if policy == "threshold":
        return share_T > threshold
    if policy == "random":
        return torch.rand_like(share_T) * threshold < share_T
    raise ValueError(f"policy={policy!r}: expected 'threshold' or 'random'")
