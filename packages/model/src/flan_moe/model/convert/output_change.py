"""How far the output of a model moved when its weights were rearranged.

Shape suffixes: B rows, S encoder positions, L decoder positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flan_moe.model.modeling import FlanMoEForConditionalGeneration

_ROWS, _ENCODER_TOKENS, _DECODER_TOKENS = 4, 32, 16


@dataclass(frozen=True)
class OutputChange:
    """Absolute differences of logits, in evaluation mode and float32.

    Attributes:
        largest: the largest.
        mean: the mean over tokens and vocabulary.
        logit_scale: the largest absolute logit before, to judge the others by.
        num_tokens: decoder positions compared.
    """

    largest: float
    mean: float
    logit_scale: float
    num_tokens: int


@torch.no_grad()
def sample_logits(model: FlanMoEForConditionalGeneration, seed: int = 0) -> Tensor:
    """Logits, (B, L, V), of four rows of random tokens: 32 for the encoder, 16 for the decoder."""
    generator = torch.Generator().manual_seed(seed)
    vocab_size = model.config.vocab_size
    input_ids = torch.randint(vocab_size, (_ROWS, _ENCODER_TOKENS), generator=generator)
    decoder_ids = torch.randint(vocab_size, (_ROWS, _DECODER_TOKENS), generator=generator)
    model = model.float().eval()
    return model(input_ids=input_ids, decoder_input_ids=decoder_ids).logits


def change(before_BLV: Tensor, after_BLV: Tensor) -> OutputChange:
    """Compare logits of the same tokens."""
    difference_BLV = (after_BLV - before_BLV).abs()
    return OutputChange(
        largest=float(difference_BLV.max()),
        mean=float(difference_BLV.mean()),
        logit_scale=float(before_BLV.abs().max()),
        num_tokens=before_BLV.shape[0] * before_BLV.shape[1],
    )
