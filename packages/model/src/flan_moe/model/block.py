"""One layer of the encoder or decoder: pre-norm residual branches on flat tokens.

Shape suffixes: T real tokens, D model width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import EncoderDecoderCache

from flan_moe.experts import SparseFeedForward
from flan_moe.model.attention import CrossAttention, SelfAttention
from flan_moe.model.config import FlanMoEConfig, StackName
from flan_moe.model.feed_forward import build_dense_feed_forward, build_feed_forward
from flan_moe.model.segments import TokenLayout
from flan_moe.routing import Routing


class Block(nn.Module):
    """Self-attention, in a decoder cross-attention, then a dense or sparse feed-forward network.

    Each branch is ``x + dropout(branch(norm(x)))``. With ``config.extra_feed_forward`` a dense
    network follows the experts of a sparse layer as one more branch: it reads the stream that their
    output was added to, as flaxformer's ``extra_mlp`` does. ST-MoE (Zoph et al. 2022) leaves open
    whether it comes before or after the experts; both layers have the same size and cost.

    Args:
        config: sizes and options.
        stack: ``"encoder"`` or ``"decoder"``.
        layer: index in the stack; decides whether the layer is sparse.
    """

    def __init__(self, config: FlanMoEConfig, stack: StackName, layer: int) -> None:
        super().__init__()
        attention = {
            "d_model": config.d_model,
            "num_heads": config.num_heads,
            "d_kv": config.d_kv,
            "dropout": config.dropout_rate,
            "init_factor": config.initializer_factor,
        }
        norm = {"normalized_shape": config.d_model, "eps": config.layer_norm_epsilon}
        self.layer = layer
        self.dropout = config.dropout_rate
        self.self_attention_norm = nn.RMSNorm(**norm)
        self.self_attention = SelfAttention(**attention)
        if stack == "decoder":
            self.cross_attention_norm = nn.RMSNorm(**norm)
            self.cross_attention = CrossAttention(**attention)
        self.feed_forward_norm = nn.RMSNorm(**norm)
        self.feed_forward = build_feed_forward(config, stack, layer)
        if config.has_extra_feed_forward(stack, layer):
            self.extra_feed_forward_norm = nn.RMSNorm(**norm)
            self.extra_feed_forward = build_dense_feed_forward(config, config.d_ff)

    def forward(
        self,
        x_TD: Tensor,
        layout: TokenLayout,
        bias: Tensor | None,
        sequence_T: Tensor | None,
        token_id_T: Tensor | None,
        *,
        cross_bias: Tensor | None = None,
        memory_TD: Tensor | None = None,
        memory_layout: TokenLayout | None = None,
        cache: EncoderDecoderCache | None = None,
    ) -> tuple[Tensor, Routing | None]:
        """Run the layer.

        Args:
            x_TD: (T, D) flat tokens.
            layout: where they belong.
            bias: of self-attention.
            sequence_T: sequence ids for the router; not needed in a dense layer.
            token_id_T: vocabulary ids for the router; None for embeddings without ids.
            cross_bias: of cross-attention.
            memory_TD: flat encoder output, for cross-attention.
            memory_layout: where it belongs.
            cache: decoder cache.

        Returns:
            (T, D), and the routing of a sparse layer.
        """
        y_TD = self.self_attention(
            self.self_attention_norm(x_TD), layout, bias, cache=cache, layer=self.layer
        )
        x_TD = self._add(x_TD, y_TD)
        if hasattr(self, "cross_attention"):
            y_TD = self.cross_attention(
                self.cross_attention_norm(x_TD),
                layout,
                cross_bias,
                memory_TD=memory_TD,
                memory_layout=memory_layout,
                cache=cache,
                layer=self.layer,
            )
            x_TD = self._add(x_TD, y_TD)
        y_TD = self.feed_forward_norm(x_TD)
        routing = None
        if isinstance(self.feed_forward, SparseFeedForward):
            y_TD, routing = self.feed_forward(y_TD, sequence_T=sequence_T, token_id_T=token_id_T)
        else:
            y_TD = self.feed_forward(y_TD)
        x_TD = self._add(x_TD, y_TD)
        if hasattr(self, "extra_feed_forward"):
            y_TD = self.extra_feed_forward(self.extra_feed_forward_norm(x_TD))
            x_TD = self._add(x_TD, y_TD)
        return x_TD, routing

    def _add(self, x_TD: Tensor, y_TD: Tensor) -> Tensor:
        return x_TD + (F.dropout(y_TD, self.dropout) if self.training else y_TD)
