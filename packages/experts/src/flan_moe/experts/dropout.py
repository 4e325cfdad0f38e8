"""Expert dropout: dropout on the hidden activation of the experts.

The mask is a pure function of a seed, so that the backward pass makes it again from eight bytes
instead of keeping (R, F) of them, and every backend uses the same mask. The seed comes from
torch's CPU generator: reproducible under ``torch.manual_seed``, restored by activation
checkpointing, and drawn without waiting for a GPU.

Shape suffixes: R rows, F hidden width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_LEVELS = 1 << 16


class DropoutSeed(NamedTuple):
    """One dropout draw: everything that the mask depends on but its shape."""

    seed: int
    probability: float


def draw_dropout(probability: float) -> DropoutSeed:
    """Draw a new mask from torch's global CPU generator, advancing it once."""
    return DropoutSeed(int(torch.randint(2**63 - 1, ())), probability)


def dropout_scale(draw: DropoutSeed, rows: int, width: int, *, device: torch.device) -> Tensor:
    """The factors of dropout, (rows, width) float32: 0, or 1 / (fraction kept).

    Dropout is ``a_RF * dropout_scale(...)``, and so is its derivative. Sixteen random bits decide
    an element, four elements per 64-bit draw: several times cheaper than `torch.bernoulli` on
    CPU. The probability is rounded to a multiple of 2**-16 and the scale follows the rounded
    value, so that the expectation stays 1.
    """
    dropped_levels = round(draw.probability * _LEVELS)
    if dropped_levels == _LEVELS:
        return torch.zeros(rows, width, device=device)
    generator = torch.Generator(device).manual_seed(draw.seed)
    words = torch.empty((rows * width + 3) // 4, dtype=torch.int64, device=device)
    words.random_(-(2**63), None, generator=generator)
    level_RF = words.view(torch.int16)[: rows * width].view(rows, width)
    kept_RF = level_RF >= dropped_levels - _LEVELS // 2
    return kept_RF.float().mul_(_LEVELS / (_LEVELS - dropped_levels))
