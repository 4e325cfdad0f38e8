"""Quantile balancing: the biases that balance a step, solved for from a histogram.

Source: Kimi K3 technical report, section 2.3.3 and appendix D.

Shape suffixes: T tokens, E experts, B histogram bins.
"""

from __future__ import annotations

import torch
from torch import Tensor

BIAS_HISTOGRAM = "bias_histogram_EB"
"""The key of a routing's stats that holds `bias_histogram`."""

BINS = 1000


def histogram_range(bias_E: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest bias that can matter, for scores in [0, 1]."""
    return bias_E.min() - 1.0, bias_E.max() + 1.0


def bias_histogram(scores_TE: Tensor, bias_E: Tensor, *, k: int) -> Tensor:
    """How many tokens would need which bias to choose each expert, (E, B) float32.

    A token's cutoff is its (k+1)-th largest biased score; with a bias of ``cutoff - score`` or more
    the expert is among its choices. Bins are uniform over `histogram_range`.

    Args:
        scores_TE: (T, E) scores in [0, 1], without bias.
        bias_E: (E,) the biases that the tokens were routed with.
        k: choices per token, below E.
    """
    low, high = histogram_range(bias_E)
    cutoff_T1 = (scores_TE + bias_E).topk(k + 1, dim=-1).values[:, -1:]
    place_TE = (cutoff_T1 - scores_TE - low) * (BINS / (high - low))
    bin_TE = place_TE.long().clamp(0, BINS - 1)
    slot_TE = bin_TE + BINS * torch.arange(bias_E.shape[0], device=bias_E.device)
    count = torch.zeros(bias_E.shape[0] * BINS, dtype=torch.float32, device=bias_E.device)
    ones_N = torch.ones_like(slot_TE, dtype=torch.float32).reshape(-1)
    return count.scatter_add_(0, slot_TE.reshape(-1), ones_N).view(-1, BINS)


def quantile_bias(histogram_EB: Tensor, bias_E: Tensor, *, share: float) -> Tensor:
    """The biases with which every expert is chosen by a ``share`` of the tokens, (E,), mean 0.

    Per expert, the ``share`` quantile of the biases that tokens need, interpolated within its bin.
    Source: quantile balancing, Kimi K3 technical report, section 2.3.3 and appendix D.

    Args:
        histogram_EB: (E, B), summed over the tokens of a step.
        bias_E: (E,) the biases that it was made with, which place its bins.
        share: k / E.
    """
    low, high = histogram_range(bias_E)
    total_E1 = histogram_EB.sum(dim=-1, keepdim=True)
    below_EB = histogram_EB.cumsum(dim=-1)
    wanted_E1 = share * total_E1
    bin_E1 = torch.searchsorted(below_EB, wanted_E1).clamp(max=BINS - 1)
    inside_E1 = histogram_EB.gather(-1, bin_E1)
    before_E1 = below_EB.gather(-1, bin_E1) - inside_E1
    place_E1 = bin_E1 + ((wanted_E1 - before_E1) / inside_E1.clamp(min=1)).clamp(0, 1)
    solved_E = (low + place_E1 * ((high - low) / BINS)).squeeze(-1)
    solved_E = torch.where(total_E1.squeeze(-1) > 0, solved_E, bias_E)
    return solved_E - solved_E.mean()
