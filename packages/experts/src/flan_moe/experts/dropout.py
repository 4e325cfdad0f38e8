"""Expert dropout: dropout on the hidden activation of the experts.

The mask is a pure function of a seed, a row and a column, the same on every device and in every
backend, so that the backward pass makes it again from eight bytes instead of keeping (R, F) of
them, and a kernel makes the part that it needs. Its bits are those of Philox4x64-10 (Salmon et
al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), sixteen per element.

Shape suffixes: R rows, F hidden width.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BLOCK = 16
"""Columns that share one Philox counter: four words of 64 bits, sixteen bits each."""

LEVELS = 1 << 16

_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_KEY_STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS = 10


class Dropout(NamedTuple):
    """One dropout draw: everything that the mask depends on but its shape.

    Attributes:
        seed: (1,) int64, on the device of the tokens.
        probability: of dropping an element, rounded to a multiple of 2**-16.
    """

    seed: Tensor
    probability: float

    @property
    def dropped_levels(self) -> int:
        """An element is dropped if its sixteen bits, as an unsigned number, are below this."""
        return round(self.probability * LEVELS)

    @property
    def scale(self) -> float:
        """The factor of what is kept: 1 / (fraction kept), 0 if nothing is."""
        kept_levels = LEVELS - self.dropped_levels
        return LEVELS / kept_levels if kept_levels else 0.0


def draw_seed(device: torch.device) -> Tensor:
    """A new seed, (1,) int64, from the default generator of ``device``, advancing it once.

    That generator is what ``torch.manual_seed`` sets, what activation checkpointing restores, and,
    on CUDA, what a captured graph advances at each replay. Does not wait for the device.
    """
    return torch.randint(2**63 - 1, (1,), device=device)


def dropout_scale(draw: Dropout, rows: int, width: int, *, first_row: int = 0) -> Tensor:
    """The factors of dropout for some rows, (rows, width) float32: 0, or `Dropout.scale`.

    Dropout is ``a_RF * dropout_scale(...)``, and so is its derivative. Column c of row r takes
    counter ``r * ceil(width / 16) + c // 16`` of the Philox stream with the seed as its key, of
    the four words the one at ``c % 16 // 4``, of that the bits from ``16 * (c % 4)`` on.
    """
    device = draw.seed.device
    blocks = -(-width // BLOCK)
    if rows == 0 or draw.dropped_levels == LEVELS:
        return torch.zeros(rows, width, device=device)
    words = _words_numpy if device.type == "cpu" else _words_torch
    level = (
        words(draw.seed, first_row * blocks, rows * blocks)
        .view(torch.int16)
        .view(rows, blocks * BLOCK)
    )
    # int16 holds the unsigned sixteen bits u as u if u < 2**15, else u - 2**16.
    if draw.dropped_levels < LEVELS // 2:
        kept = (level < 0) | (level >= draw.dropped_levels)
    else:
        kept = (level < 0) & (level >= draw.dropped_levels - LEVELS)
    return kept[:, :width].float().mul_(draw.scale)


def _words_numpy(seed: Tensor, first: int, counters: int) -> Tensor:
    """The words of counters first.. in order, (4 * counters,) int64, by numpy's Philox."""
    # numpy adds one to its 256-bit counter before each block, the first included.
    philox = np.random.Philox(key=int(seed), counter=(first - 1) % 2**256)
    return torch.from_numpy(philox.random_raw(4 * counters).view(np.int64))


def _words_torch(seed: Tensor, first: int, counters: int) -> Tensor:
    """As `_words_numpy`, in integer operations of torch, on the device of the seed."""
    counter = torch.arange(first, first + counters, device=seed.device)
    zero = torch.zeros_like(counter)
    words = (counter, zero, zero, zero)
    keys = (seed, torch.zeros_like(seed))
    for _ in range(_ROUNDS):
        high_0, low_0 = _multiply(words[0], _MULTIPLIERS[0])
        high_1, low_1 = _multiply(words[2], _MULTIPLIERS[1])
        words = (high_1 ^ words[1] ^ keys[0], low_1, high_0 ^ words[3] ^ keys[1], low_0)
        keys = tuple(key + _signed(step) for key, step in zip(keys, _KEY_STEPS, strict=True))
    return torch.stack(words, dim=-1).flatten()


def _multiply(word: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """The upper and the lower 64 bits of an unsigned product, from its 32-bit halves."""
    mask = (1 << 32) - 1
    word_high, word_low = (word >> 32) & mask, word & mask
    factor_high, factor_low = factor >> 32, factor & mask
    low = word_low * factor_low
    middle_0 = word_high * factor_low + ((low >> 32) & mask)
    middle_1 = word_low * factor_high + (middle_0 & mask)
    high = word_high * factor_high + ((middle_0 >> 32) & mask) + ((middle_1 >> 32) & mask)
    return high, word * _signed(factor)


def _signed(word: int) -> int:
    """The same 64 bits as a Python integer that fits int64."""
    return word - (1 << 64) if word >= 1 << 63 else word
