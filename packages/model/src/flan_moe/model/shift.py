"""From labels to decoder input, and which decoder positions matter.

Shape suffixes: B rows, L decoder positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flan_moe.model.losses import IGNORED_LABEL
from flan_moe.model.segments import TokenLayout


def shift_right(
    labels_BL: Tensor,
    *,
    start_token_id: int,
    pad_token_id: int,
    segments_BL: Tensor | None = None,
) -> Tensor:
    """Decoder input for teacher forcing: every sequence starts with the start token.

    Args:
        labels_BL: (B, L) labels; -100 becomes the padding token.
        start_token_id: first input of each sequence.
        pad_token_id: stands for labels of -100.
        segments_BL: (B, L) packed segments, each of which starts anew.

    Returns:
        (B, L).

    Raises:
        ValueError: if labels are empty, or differ in shape from segments.
    """
    if segments_BL is not None and segments_BL.shape != labels_BL.shape:
        raise ValueError(
            f"decoder_segments has shape {tuple(segments_BL.shape)}; expected "
            f"{tuple(labels_BL.shape)}, like labels"
        )
    if labels_BL.ndim != 2 or labels_BL.shape[1] == 0:
        raise ValueError(
            f"labels has shape {tuple(labels_BL.shape)}; expected (batch, length above 0)"
        )
    ids_BL = torch.empty_like(labels_BL)
    ids_BL[:, 0] = start_token_id
    ids_BL[:, 1:] = labels_BL[:, :-1]
    ids_BL.masked_fill_(ids_BL == IGNORED_LABEL, pad_token_id)
    if segments_BL is not None:
        ids_BL[:, 1:].masked_fill_(segments_BL[:, 1:] != segments_BL[:, :-1], start_token_id)
    return ids_BL


def trailing_layout(labels_BL: Tensor) -> TokenLayout:
    """A layout without the positions after each row's last label other than -100.

    Nothing that carries loss can see them, because the decoder is causal.
    """
    counted_BL = (labels_BL != IGNORED_LABEL).long()
    later_BL = counted_BL.flip(1).cumsum(1).flip(1)
    return TokenLayout.from_mask(later_BL)
