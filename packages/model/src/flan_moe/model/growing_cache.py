"""A key-value cache that writes what is new instead of copying all that it holds in every step.

Shape suffixes: B rows, H heads, S cached positions, N new positions, C capacity, K width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer


@dataclass(kw_only=True)
class _Room:
    """Buffers of keys and values that are written from the left.

    Attributes:
        k_BHCK: of the keys.
        v_BHCK: of the values.
        written: positions that hold something; who holds fewer would overwrite another's.
    """

    k_BHCK: Tensor
    v_BHCK: Tensor
    written: int

    @classmethod
    def beginning_with(cls, k_BHSK: Tensor, v_BHSK: Tensor, capacity: int) -> _Room:
        """Room for ``capacity`` positions, the first S of them given."""
        k_BHCK, v_BHCK = (
            x_BHSK.new_empty(*x_BHSK.shape[:2], capacity, x_BHSK.shape[3])
            for x_BHSK in (k_BHSK, v_BHSK)
        )
        room = cls(k_BHCK=k_BHCK, v_BHCK=v_BHCK, written=0)
        room.append(k_BHSK, v_BHSK)
        return room

    def fits(self, past: int, new: int) -> bool:
        """Whether ``new`` positions can follow the ``past`` ones here."""
        return (
            self.written == past
            and past + new <= self.k_BHCK.shape[2]
            and self.k_BHCK.is_inference() == torch.is_inference_mode_enabled()
        )

    def append(self, k_BHNK: Tensor, v_BHNK: Tensor) -> tuple[Tensor, Tensor]:
        """Write new positions; views of all that are written."""
        past, self.written = self.written, self.written + k_BHNK.shape[2]
        self.k_BHCK[:, :, past : self.written] = k_BHNK
        self.v_BHCK[:, :, past : self.written] = v_BHNK
        return self.k_BHCK[:, :, : self.written], self.v_BHCK[:, :, : self.written]


class GrowingLayer(DynamicLayer):
    """A `DynamicLayer` of transformers with room to grow, for generation without gradients.

    ``keys`` and ``values`` are views of buffers with room for twice as many positions as were
    there when they were made. Only a layer whose keys and values are those of its last `update`
    appends to them; when something else has been put there (reordered beams, a cropped cache), when
    gradients are wanted, or in compiled code, it does what a `DynamicLayer` does.
    """

    def __init__(self) -> None:
        super().__init__()
        self._room: _Room | None = None
        self._last: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append (B, H, N, K) keys and values; returns all, (B, H, S + N, K)."""
        if self._may_append(key_states, value_states):
            past, new = self.keys.shape[2], key_states.shape[2]
            if self._room is None or not self._room.fits(past, new):
                self._room = _Room.beginning_with(self.keys, self.values, 2 * (past + new))
            self.keys, self.values = self._room.append(key_states, value_states)
        else:
            self._room = None
            super().update(key_states, value_states, *args, **kwargs)
        self._last = (self.keys, self.values)
        return self._last

    def _may_append(self, key_states: Tensor, value_states: Tensor) -> bool:
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        if self._last is None or self.keys is not self._last[0] or self.values is not self._last[1]:
            return False
        return all(  # else a plain layer raises, or keeps the wider of two dtypes
            new.dtype == held.dtype and new.shape[:2] == held.shape[:2]
            for new, held in ((key_states, self.keys), (value_states, self.values))
        )


def let_grow(cache: EncoderDecoderCache, num_layers: int) -> None:
    """Let the decoder's own keys and values grow, if the cache is plain and still empty.

    Those of cross-attention are written once.

    Args:
        cache: as transformers' generation makes it; caches of other kinds are left alone.
        num_layers: of the decoder.
    """
    own = cache.self_attention_cache
    is_plain = type(own) is DynamicCache and not own.offloading
    if is_plain and all(
        type(layer) is DynamicLayer and not layer.is_initialized for layer in own.layers
    ):
        own.layers = [GrowingLayer() for _ in range(num_layers)]
