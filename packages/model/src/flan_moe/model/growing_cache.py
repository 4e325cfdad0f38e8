"""A key-value cache that writes what is new instead of copying all that it holds in every step.

Shape suffixes: B rows, H heads, S cached positions, N new positions, C capacity, K width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer


class GrowingLayer(DynamicLayer):
    """A `DynamicLayer` of transformers with room to grow, for generation without gradients.

    ``keys`` and ``values`` are views of the first S positions of buffers twice as long as was last
    needed. Whatever replaces them (reordering of beams, moving to another device) is noticed, and
    begins new buffers. Where gradients are wanted, and in compiled code, it is a `DynamicLayer`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append (B, H, N, K) keys and values; returns all, (B, H, S + N, K)."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return super().update(key_states, value_states, *args, **kwargs)
        past = self.get_seq_length()
        # At first no room is made: those of cross-attention never grow. Of two dtypes, as where
        # autocast begins between two steps, the wider is kept.
        if past == 0 or key_states.dtype != self.keys.dtype:
            return super().update(key_states, value_states, *args, **kwargs)
        total = past + key_states.shape[-2]
        if not self._has_room(total):
            self._buffers = (_longer(self.keys, 2 * total), _longer(self.values, 2 * total))
        k_BHCK, v_BHCK = self._buffers
        k_BHCK[..., past:total, :] = key_states
        v_BHCK[..., past:total, :] = value_states
        self.keys, self.values = k_BHCK[..., :total, :], v_BHCK[..., :total, :]
        return self.keys, self.values

    def _has_room(self, total: int) -> bool:
        """Whether ``keys`` and ``values`` still begin the buffers, and these hold ``total``."""
        if self._buffers is None:
            return False
        return all(
            view.data_ptr() == buffer.data_ptr()
            and view.shape[:2] == buffer.shape[:2]
            and view.stride() == buffer.stride()
            and total <= buffer.shape[-2]
            and buffer.is_inference() == torch.is_inference_mode_enabled()
            for view, buffer in zip((self.keys, self.values), self._buffers, strict=True)
        )


def _longer(x_BHSK: Tensor, capacity: int) -> Tensor:
    """Buffer (B, H, C, K) that begins with ``x_BHSK``."""
    batch, heads, past, width = x_BHSK.shape
    buffer_BHCK = x_BHSK.new_empty(batch, heads, capacity, width)
    buffer_BHCK[..., :past, :] = x_BHSK
    return buffer_BHCK


def let_grow(cache: EncoderDecoderCache, num_layers: int) -> None:
    """Give a still empty cache of two plain `DynamicCache` layers that grow; leave others alone.

    Args:
        cache: as transformers' generation makes it.
        num_layers: of the decoder.
    """
    for part in (cache.self_attention_cache, cache.cross_attention_cache):
        is_plain = type(part) is DynamicCache and not getattr(part, "offloading", False)
        if is_plain and all(
            type(layer) is DynamicLayer and not layer.is_initialized for layer in part.layers
        ):
            part.layers = [GrowingLayer() for _ in range(num_layers)]
