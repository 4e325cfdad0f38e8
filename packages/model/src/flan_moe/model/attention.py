"""Attention, the one part of the model that knows about sequences.

Shape suffixes: B rows, L query positions, S key positions, T real tokens, D model width, H heads,
K width of a head.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import EncoderDecoderCache

from flan_moe.model.projection import Projection
from flan_moe.model.segments import TokenLayout

ATTENTION_BACKENDS = ("auto", "sdpa", "xformers")

# The CUTLASS kernels of xformers want rows of the bias to start at multiples of 16 bytes.
_BIAS_ALIGNMENT = 8


class KeysAndValues(NamedTuple):
    """Keys and values of one attention, in the layout of transformers' caches."""

    k_BHSK: Tensor
    v_BHSK: Tensor


def attend(
    q_BHLK: Tensor,
    keys_values: KeysAndValues,
    bias: Tensor | None,
    *,
    dropout: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """``softmax(q k^T + bias) v`` without the usual ``K ** -0.5``, as in T5.

    Two implementations of the same function. ``"sdpa"`` is torch's scaled_dot_product_attention
    and runs anywhere. ``"xformers"`` is memory_efficient_attention, which has no CPU kernel; its
    agreement with ``"sdpa"``, gradient of the bias included, can only be verified on a CUDA
    device, where ``tests/test_attention_gpu.py`` (marked ``gpu``) does so. ``"auto"`` is
    what `choose_backend` says.

    Args:
        q_BHLK: queries.
        keys_values: keys and values, each (B, H, S, K).
        bias: added to the scores, (B or 1, H or 1, L or 1, S), from `attention_bias`, or None.
        dropout: probability of dropping an attention weight; 0 in evaluation.
        backend: one of `ATTENTION_BACKENDS`.

    Returns:
        (B, L, H * K).
    """
    if backend == "auto":
        backend = choose_backend(q_BHLK.device.type, q_BHLK.dtype, q_BHLK.shape[-1])
    run = _attend_xformers if backend == "xformers" else _attend_sdpa
    return run(q_BHLK, keys_values, bias, dropout).flatten(2)


def choose_backend(device_type: str, dtype: torch.dtype, d_kv: int) -> str:
    """What ``"auto"`` is: xformers where it is installed and has a kernel, else SDPA.

    Its kernels are for CUDA, K a multiple of 8, and float32 or narrower.
    """
    has_kernel = device_type == "cuda" and d_kv % 8 == 0 and dtype != torch.float64
    return "xformers" if has_kernel and _has_xformers() else "sdpa"


def attention_bias(
    position_bias: Tensor | None, allowed: Tensor | None, like: Tensor
) -> Tensor | None:
    """Join position bias and mask into one additive bias, shared by all layers of a stack.

    Hidden keys get the lowest finite number instead of minus infinity, so that rows that see
    nothing (padding queries, rows without tokens) stay finite; their output is never read.

    Args:
        position_bias: (1, H, L, S) or None.
        allowed: bool, broadcastable to (B, H, L, S), True where attention may look; or None.
        like: a tensor whose device and (outside autocast) dtype the queries will have.

    Returns:
        A bias broadcastable to (B, H, L, S) in the dtype of the queries; None if there is none.
    """
    if position_bias is None and allowed is None:
        return None
    device_type = like.device.type
    dtype = (
        torch.get_autocast_dtype(device_type)
        if torch.is_autocast_enabled(device_type)
        else like.dtype
    )
    lowest = torch.finfo(dtype).min
    if position_bias is None:
        bias = torch.zeros(allowed.shape, dtype=dtype, device=like.device)
        bias.masked_fill_(~allowed, lowest)
    else:
        bias = position_bias.to(dtype)
        if allowed is not None:
            bias = torch.where(allowed, bias, lowest)
    if like.is_cuda:
        # Here, once per stack, and not in every layer: a view of rows padded to the alignment.
        length = bias.shape[-1]
        bias = F.pad(bias, (0, -length % _BIAS_ALIGNMENT))[..., :length]
    return bias


class Attention(nn.Module):
    """Projections of multi-head attention without biases; see the two subclasses.

    Args:
        d_model: D.
        num_heads: H.
        d_kv: K.
        dropout: on the attention weights.
        init_factor: scales the initial standard deviations.

    Attributes:
        q: D to H * K.
        k: D to H * K.
        v: D to H * K.
        o: H * K to D.
        backend: see `attend`.
    """

    def __init__(
        self,
        *,
        d_model: int,
        num_heads: int,
        d_kv: int,
        dropout: float,
        init_factor: float = 1.0,
    ) -> None:
        super().__init__()
        inner = num_heads * d_kv
        self.num_heads = num_heads
        self.d_kv = d_kv
        self.dropout = dropout
        self.backend = "auto"
        std = init_factor * d_model**-0.5
        # The initial queries carry the K ** -0.5 that the scores lack.
        self.q = Projection(d_model, inner, std=std * d_kv**-0.5)
        self.k = Projection(d_model, inner, std=std)
        self.v = Projection(d_model, inner, std=std)
        self.o = Projection(inner, d_model, std=init_factor * inner**-0.5)

    def _heads(self, flat_TD: Tensor, layout: TokenLayout) -> Tensor:
        """Flat projections (T, H * K) as padded heads (B, H, S, K)."""
        padded_BSD = layout.pad(flat_TD)
        return padded_BSD.view(*padded_BSD.shape[:2], self.num_heads, self.d_kv).transpose(1, 2)

    def _keys_values(self, x_TD: Tensor, layout: TokenLayout) -> KeysAndValues:
        return KeysAndValues(self._heads(self.k(x_TD), layout), self._heads(self.v(x_TD), layout))

    def _attend(
        self, x_TD: Tensor, layout: TokenLayout, keys_values: KeysAndValues, bias: Tensor | None
    ) -> Tensor:
        out_BLD = attend(
            self._heads(self.q(x_TD), layout),
            keys_values,
            bias,
            dropout=self.dropout if self.training else 0.0,
            backend=self.backend,
        )
        return self.o(layout.flatten(out_BLD))


class SelfAttention(Attention):
    """Attention of a stack's tokens to each other."""

    def forward(
        self,
        x_TD: Tensor,
        layout: TokenLayout,
        bias: Tensor | None,
        *,
        cache: EncoderDecoderCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """Attend within the rows of ``layout``; positions in ``cache`` come before them.

        Args:
            x_TD: (T, D) flat tokens.
            layout: where they belong.
            bias: see `attend`; S counts cached positions.
            cache: decoder cache to read and to extend.
            layer: index of this layer in the cache.

        Returns:
            (T, D).
        """
        keys_values = self._keys_values(x_TD, layout)
        if cache is not None:
            keys_values = KeysAndValues(*cache.self_attention_cache.update(*keys_values, layer))
        return self._attend(x_TD, layout, keys_values, bias)


class CrossAttention(Attention):
    """Attention of the decoder's tokens to the encoder's."""

    def forward(
        self,
        x_TD: Tensor,
        layout: TokenLayout,
        bias: Tensor | None,
        *,
        memory_TD: Tensor | None,
        memory_layout: TokenLayout | None,
        cache: EncoderDecoderCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """Attend to the encoder; its keys and values are made once per generation.

        Args:
            x_TD: (T, D) flat tokens of the decoder.
            layout: where they belong.
            bias: see `attend`.
            memory_TD: flat encoder output; not read once the cache is filled.
            memory_layout: where it belongs.
            cache: decoder cache to read or to fill.
            layer: index of this layer in the cache.

        Returns:
            (T, D).
        """
        if cache is None:
            keys_values = self._keys_values(memory_TD, memory_layout)
        elif cache.is_updated.get(layer, False):
            filled = cache.cross_attention_cache.layers[layer]
            keys_values = KeysAndValues(filled.keys, filled.values)
        else:
            keys_values = self._keys_values(memory_TD, memory_layout)
            cache.cross_attention_cache.update(*keys_values, layer)
            cache.is_updated[layer] = True
        return self._attend(x_TD, layout, keys_values, bias)


def _attend_sdpa(
    q_BHLK: Tensor, keys_values: KeysAndValues, bias: Tensor | None, dropout: float
) -> Tensor:
    if q_BHLK.device.type == "cpu" and (dropout or (bias is not None and bias.requires_grad)):
        out_BHLK = _attend_in_steps(q_BHLK, keys_values, bias, dropout)
    else:
        out_BHLK = F.scaled_dot_product_attention(
            q_BHLK, *keys_values, attn_mask=bias, dropout_p=dropout, scale=1.0
        )
    return out_BHLK.transpose(1, 2)


def _attend_in_steps(
    q_BHLK: Tensor, keys_values: KeysAndValues, bias: Tensor | None, dropout: float
) -> Tensor:
    """Where torch has no fused kernel for CPUs: with dropout, or a gradient of the bias.

    What it would do instead scales queries and keys, here by one, and looks for rows that see
    nothing, which a finite bias never has: more passes over the (B, H, L, S) scores.
    """
    k_BHSK, v_BHSK = keys_values
    scores_BHLS = q_BHLK @ k_BHSK.transpose(-1, -2)
    if bias is not None:
        scores_BHLS += bias
    return F.dropout(scores_BHLS.softmax(-1), dropout) @ v_BHSK


def _attend_xformers(
    q_BHLK: Tensor, keys_values: KeysAndValues, bias: Tensor | None, dropout: float
) -> Tensor:
    from xformers.ops import memory_efficient_attention

    q_BLHK, k_BSHK, v_BSHK = (x.transpose(1, 2) for x in (q_BHLK, *keys_values))
    if bias is not None:
        # xformers does not broadcast. The expanded dimensions have stride 0, which its kernels
        # read directly, and autograd sums their gradient.
        batch, heads, length, _ = q_BHLK.shape
        bias = bias.expand(batch, heads, length, k_BSHK.shape[1])
    return memory_efficient_attention(q_BLHK, k_BSHK, v_BSHK, attn_bias=bias, p=dropout, scale=1.0)


@functools.cache
def _has_xformers() -> bool:
    return importlib.util.find_spec("xformers") is not None
