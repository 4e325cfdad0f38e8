"""Where the real tokens of a padded or packed batch are, and what may attend to what.

Shape suffixes: B rows of a batch, S positions of a row, L query positions, T real tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """The way between padded rows (B, S, ...) and flat, padding-free tokens (T, ...).

    Flat tokens are in row order, then position order. Make one with `every_position`,
    `from_mask` or `from_segments`.

    Attributes:
        batch_size: B.
        length: S.
        index_T: (T,) int64, flat positions ``b * S + s`` of the real tokens; None if every
            position is one, in which case both directions are views.
        segments_BS: (B, S) integer, 0 for padding; None if every position is real and each row
            holds one sequence.
        packed: whether a row may hold several sequences, numbered from 1.
    """

    batch_size: int
    length: int
    index_T: Tensor | None = None
    segments_BS: Tensor | None = None
    packed: bool = False

    @classmethod
    def every_position(cls, batch_size: int, length: int) -> TokenLayout:
        """A batch without padding, one sequence per row."""
        return cls(batch_size=batch_size, length=length)

    @classmethod
    def from_mask(cls, mask_BS: Tensor) -> TokenLayout:
        """One sequence per row; ``mask_BS`` is nonzero at its tokens. Waits for the device."""
        batch_size, length = mask_BS.shape
        index_T = mask_BS.reshape(-1).nonzero().squeeze(1)
        if index_T.shape[0] == batch_size * length:
            return cls.every_position(batch_size, length)
        return cls(
            batch_size=batch_size, length=length, index_T=index_T, segments_BS=(mask_BS != 0).long()
        )

    @classmethod
    def from_segments(cls, segments_BS: Tensor) -> TokenLayout:
        """Packed rows: 0 is padding, k > 0 the k-th sequence of its row. Waits for the device."""
        batch_size, length = segments_BS.shape
        index_T = segments_BS.reshape(-1).nonzero().squeeze(1)
        return cls(
            batch_size=batch_size,
            length=length,
            index_T=None if index_T.shape[0] == batch_size * length else index_T,
            segments_BS=segments_BS,
            packed=True,
        )

    @property
    def num_tokens(self) -> int:
        """T, the number of real tokens."""
        if self.index_T is None:
            return self.batch_size * self.length
        return self.index_T.shape[0]

    def flatten(self, x_BS: Tensor) -> Tensor:
        """Take the real tokens of (B, S, ...) as (T, ...)."""
        flat = x_BS.reshape(self.batch_size * self.length, *x_BS.shape[2:])
        return flat if self.index_T is None else flat.index_select(0, self.index_T)

    def pad(self, x_T: Tensor) -> Tensor:
        """Put (T, ...) back in place as (B, S, ...), with zeros at padding."""
        if self.index_T is not None:
            flat = x_T.new_zeros(self.batch_size * self.length, *x_T.shape[1:])
            x_T = flat.index_copy_(0, self.index_T, x_T)
        return x_T.view(self.batch_size, self.length, *x_T.shape[1:])

    def sequence_ids(self, device: torch.device) -> Tensor:
        """(T,) int64, the sequence of each token, numbered from 0 through the whole batch."""
        row_BS = torch.arange(self.batch_size, device=device)[:, None].expand(-1, self.length)
        row_T = self.flatten(row_BS)
        if not self.packed:
            return row_T
        segment_T = self.flatten(self.segments_BS)
        starts_T = torch.ones_like(row_T)
        starts_T[1:] = (row_T[1:] != row_T[:-1]) | (segment_T[1:] != segment_T[:-1])
        return starts_T.cumsum(0) - 1


def may_attend(layout: TokenLayout) -> Tensor | None:
    """Which keys a query of the same sequence sees in bidirectional self-attention.

    Returns:
        bool, (B, 1, 1, S) or for packed rows (B, 1, S, S); None if there is nothing to hide.
        Rows of padding queries are arbitrary but not empty.
    """
    segments_BS = layout.segments_BS
    if segments_BS is None:
        return None
    if layout.packed:
        return (segments_BS[:, :, None] == segments_BS[:, None, :])[:, None]
    return (segments_BS > 0)[:, None, None]


def may_attend_causal(
    query_length: int, key_length: int, key_allowed: Tensor | None, device: torch.device
) -> Tensor | None:
    """Causal self-attention of the last ``query_length`` of ``key_length`` positions.

    Args:
        query_length: L.
        key_length: S, cached positions included.
        key_allowed: what `may_attend` says about the keys.
        device: of the result.

    Returns:
        bool, broadcastable to (B, 1, L, S); None if there is nothing to hide.
    """
    if query_length == 1:
        return key_allowed
    causal_LS = torch.ones(query_length, key_length, dtype=torch.bool, device=device).tril(
        key_length - query_length
    )
    return causal_LS if key_allowed is None else causal_LS & key_allowed


def may_attend_across(query: TokenLayout, key: TokenLayout) -> Tensor | None:
    """Cross-attention: segment k of the decoder sees segment k of the encoder.

    A decoder segment that the encoder lacks is looked for on the CPU only: elsewhere the host would
    wait for the device in every forward pass. There such a segment reads arbitrary positions of its
    row, without NaN.

    Args:
        query: layout of the decoder.
        key: layout of the encoder.

    Returns:
        bool, (B, 1, 1, S) or for packed rows (B, 1, L, S); None if there is nothing to hide.

    Raises:
        ValueError: if one side is packed and the other is not, if the numbers of rows differ, or
            if, on the CPU, the decoder holds a segment that the encoder lacks.
    """
    _check_rows(query, key.batch_size)
    if query.packed != key.packed:
        raise ValueError(
            "encoder_segments and decoder_segments must be given together: segment k of the "
            "decoder reads segment k of the encoder"
        )
    if not query.packed:
        return None if key.segments_BS is None else (key.segments_BS > 0)[:, None, None]
    allowed_BLS = query.segments_BS[:, :, None] == key.segments_BS[:, None, :]
    if allowed_BLS.device.type == "cpu":
        _refuse_orphans(query.segments_BS, allowed_BLS)
    return allowed_BLS[:, None]


def may_attend_to_cache(
    query: TokenLayout, batch_size: int, mask_BS: Tensor | None
) -> Tensor | None:
    """Cross-attention to cached keys; unlike `may_attend_across` it never waits for the device.

    Args:
        query: layout of the decoder, not packed.
        batch_size: rows of the encoder.
        mask_BS: nonzero at the encoder's tokens; None if all positions are.

    Returns:
        bool, (B, 1, 1, S); None if there is no mask.

    Raises:
        ValueError: if the numbers of rows differ.
    """
    _check_rows(query, batch_size)
    return None if mask_BS is None else (mask_BS != 0)[:, None, None]


def refuse_malformed(name: str, segments_BS: Tensor) -> None:
    """Refuse negative numbers, and a number at two places of a row, on the CPU only.

    Attention would join the two pieces, the decoder's input and routers would separate them.

    Args:
        name: of the argument, for the message.
        segments_BS: (B, S), 0 for padding, k > 0 for the k-th sequence of its row.

    Raises:
        ValueError: naming row and number.
    """
    if segments_BS.device.type != "cpu" or torch.compiler.is_compiling():
        return
    negative_BS = segments_BS < 0
    if bool(negative_BS.any()):
        row, position = negative_BS.nonzero()[0].tolist()
        raise ValueError(
            f"{name}[{row}] holds {segments_BS[row, position].item()}; expected 0 for padding and "
            "numbers from 1 for sequences"
        )
    begins_BS = segments_BS > 0
    begins_BS[:, 1:] &= segments_BS[:, 1:] != segments_BS[:, :-1]
    begun_BS = torch.where(begins_BS, segments_BS, 0).sort(dim=1).values
    again_BS = (begun_BS[:, 1:] > 0) & (begun_BS[:, 1:] == begun_BS[:, :-1])
    if bool(again_BS.any()):
        row, position = again_BS.nonzero()[0].tolist()
        raise ValueError(
            f"{name}[{row}] has segment {begun_BS[row, position].item()} at two places; expected "
            "each sequence in one piece"
        )


def _check_rows(query: TokenLayout, batch_size: int) -> None:
    if query.batch_size != batch_size:
        raise ValueError(
            f"the decoder has {query.batch_size} rows, the encoder {batch_size}: row b of one "
            "belongs to row b of the other"
        )


def _refuse_orphans(segments_BL: Tensor, allowed_BLS: Tensor) -> None:
    """Refuse decoder segments without encoder tokens. Waits for the device."""
    orphan_BL = (segments_BL > 0) & ~allowed_BLS.any(-1)
    if bool(orphan_BL.any()):
        row, position = orphan_BL.nonzero()[0].tolist()
        raise ValueError(
            f"decoder_segments[{row}] has segment {int(segments_BL[row, position])}, which "
            f"encoder_segments[{row}] lacks"
        )
