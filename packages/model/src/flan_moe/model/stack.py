"""Encoder and decoder: embedding, blocks and final norm over flat, padding-free tokens.

Shape suffixes: B rows, S encoder positions, L decoder positions, T real tokens, D model width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import EncoderDecoderCache

from flan_moe.model.attention import attention_bias
from flan_moe.model.block import Block
from flan_moe.model.config import FlanMoEConfig, StackName
from flan_moe.model.output import EncoderOutput, NamedRoutings
from flan_moe.model.position_bias import RelativePositionBias
from flan_moe.model.segments import (
    TokenLayout,
    may_attend,
    may_attend_causal,
    refuse_malformed,
)


class StackOutput(NamedTuple):
    """Flat output of a stack.

    Attributes:
        x_TD: after the final norm and dropout.
        hidden_states: padded states, see `EncoderOutput`; None unless asked for.
        routings: one entry per sparse layer.
    """

    x_TD: Tensor
    hidden_states: tuple[Tensor, ...] | None
    routings: NamedRoutings


class Stack(nn.Module):
    """What encoder and decoder share.

    Args:
        config: sizes and options.
        stack: ``"encoder"`` or ``"decoder"``.
        embedding: of the model, used but not owned.
    """

    main_input_name = "input_ids"

    def __init__(self, config: FlanMoEConfig, stack: StackName, embedding: nn.Embedding) -> None:
        super().__init__()
        self.stack = stack
        self.dropout = config.dropout_rate
        router = config.router_config(stack)
        self.is_sparse = router is not None
        self.gradient_checkpointing = False
        self.set_embedding(embedding)
        self.position_bias = RelativePositionBias(
            num_heads=config.num_heads,
            num_buckets=config.relative_attention_num_buckets,
            max_distance=config.relative_attention_max_distance,
            bidirectional=stack == "encoder",
        )
        self.layers = nn.ModuleList(
            Block(config, stack, layer) for layer in range(config.layer_count(stack))
        )
        self.final_norm = nn.RMSNorm(config.d_model, eps=config.layer_norm_epsilon)

    def set_embedding(self, embedding: nn.Embedding) -> None:
        """Use another embedding module."""
        # In a tuple, so that it is not registered here: its weight has one name, the model's.
        self._embedding = (embedding,)

    def _embed(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None, layout: TokenLayout
    ) -> Tensor:
        if inputs_embeds is not None:
            return layout.flatten(inputs_embeds)
        name = "input_ids" if self.stack == "encoder" else "decoder_input_ids"
        # Of the weight: PEFT's wrappers have one, but no num_embeddings.
        check_ids(name, input_ids, self._embedding[0].weight.shape[0])
        return self._embedding[0](layout.flatten(input_ids))

    def _run(
        self,
        x_TD: Tensor,
        layout: TokenLayout,
        bias: Tensor | None,
        *,
        input_ids: Tensor | None,
        output_hidden_states: bool,
        **cross: object,
    ) -> StackOutput:
        sequence_T = layout.sequence_ids(x_TD.device) if self.is_sparse else None
        token_id_T = None
        if self.is_sparse and input_ids is not None:  # a router from outside may ask for them too
            token_id_T = layout.flatten(input_ids)
        states: list[Tensor] = []
        routings = []
        x_TD = F.dropout(x_TD, self.dropout, self.training)
        for index, block in enumerate(self.layers):
            if output_hidden_states:
                states.append(layout.pad(x_TD))
            if self.gradient_checkpointing and self.training and cross.get("cache") is None:
                # Never reentrant: that kind loses the gradient of the routers' losses.
                x_TD, routing = checkpoint(
                    block,
                    x_TD,
                    layout,
                    bias,
                    sequence_T,
                    token_id_T,
                    use_reentrant=False,
                    **cross,
                )
            else:
                x_TD, routing = block(x_TD, layout, bias, sequence_T, token_id_T, **cross)
            if routing is not None:
                routings.append((f"{self.stack}.layers.{index}.feed_forward", routing))
        x_TD = F.dropout(self.final_norm(x_TD), self.dropout, self.training)
        if output_hidden_states:
            states.append(layout.pad(x_TD))
        return StackOutput(x_TD, tuple(states) if output_hidden_states else None, tuple(routings))


class Encoder(Stack):
    """The encoder, callable on its own as transformers' generation does."""

    def __init__(self, config: FlanMoEConfig, embedding: nn.Embedding) -> None:
        super().__init__(config, "encoder", embedding)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_segments: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        layout: TokenLayout | None = None,
    ) -> EncoderOutput | tuple[Tensor, ...]:
        """Encode a batch.

        Args:
            input_ids: (B, S) token ids.
            attention_mask: (B, S), nonzero at real tokens; None if all are.
            encoder_segments: (B, S), 0 for padding, k for the k-th packed sequence; takes the
                place of ``attention_mask``.
            inputs_embeds: (B, S, D) in place of ``input_ids``.
            output_hidden_states: return the states of all layers.
            output_attentions: refused if true.
            return_dict: False for a tuple.
            layout: made from mask or segments unless the caller has it.

        Returns:
            The output, padded.

        Raises:
            ValueError: if the arguments do not fit together.
        """
        refuse_attentions(output_attentions)
        if layout is None:
            layout = token_layout(
                "encoder", input_ids, inputs_embeds, attention_mask, encoder_segments
            )
        x_TD = self._embed(input_ids, inputs_embeds, layout)
        bias = attention_bias(
            self.position_bias(layout.length, layout.length), may_attend(layout), x_TD
        )
        out = self._run(
            x_TD,
            layout,
            bias,
            input_ids=input_ids,
            output_hidden_states=bool(output_hidden_states),
        )
        output = EncoderOutput(
            last_hidden_state=layout.pad(out.x_TD),
            hidden_states=out.hidden_states,
            routings=out.routings,
        )
        return output.to_tuple() if return_dict is False else output


class Decoder(Stack):
    """The decoder; returns flat tokens for the head."""

    def __init__(self, config: FlanMoEConfig, embedding: nn.Embedding) -> None:
        super().__init__(config, "decoder", embedding)

    def forward(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        layout: TokenLayout,
        *,
        cross_allowed: Tensor | None,
        memory_TD: Tensor | None,
        memory_layout: TokenLayout | None,
        key_mask: Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
        output_hidden_states: bool = False,
    ) -> StackOutput:
        """Decode the positions of ``layout``, which follow those in ``cache``.

        Args:
            input_ids: (B, L) token ids.
            inputs_embeds: (B, L, D) in place of ``input_ids``.
            layout: of the L positions.
            cross_allowed: which keys of the encoder may be read, see `attention_bias`.
            memory_TD: flat encoder output; not read once ``cache`` holds its keys and values.
            memory_layout: where it belongs; not read then either.
            key_mask: (B, cached + L), nonzero at real tokens; only with a filled cache, otherwise
                ``layout`` says it.
            cache: to read and extend.
            output_hidden_states: return the states of all layers.

        Returns:
            Flat output, (T, D).
        """
        past = 0 if cache is None else cache.get_seq_length()
        if past == 0:
            key_allowed = may_attend(layout)
        else:
            key_allowed = None if key_mask is None else (key_mask > 0)[:, None, None]
        x_TD = self._embed(input_ids, inputs_embeds, layout)
        length = layout.length
        allowed = may_attend_causal(length, past + length, key_allowed, x_TD.device)
        return self._run(
            x_TD,
            layout,
            attention_bias(self.position_bias(length, past + length), allowed, x_TD),
            input_ids=input_ids,
            output_hidden_states=output_hidden_states,
            cross_bias=attention_bias(None, cross_allowed, x_TD),
            memory_TD=memory_TD,
            memory_layout=memory_layout,
            cache=cache,
        )


def token_layout(
    stack: StackName,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    mask: Tensor | None,
    segments: Tensor | None,
) -> TokenLayout:
    """The layout of a stack's input; segments take the place of the mask.

    Raises:
        ValueError: see `check_input` and `refuse_malformed`.
    """
    shape = check_input(stack, input_ids, inputs_embeds, mask, segments)
    if segments is not None:
        refuse_malformed(f"{stack}_segments", segments)
        return TokenLayout.from_segments(segments)
    if mask is not None:
        return TokenLayout.from_mask(mask)
    return TokenLayout.every_position(*shape)


def check_input(
    stack: StackName,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    mask: Tensor | None,
    segments: Tensor | None,
) -> tuple[int, int]:
    """Batch size and length of a stack's input.

    Raises:
        ValueError: unless exactly one of ids and embeddings is given and all shapes agree.
    """
    prefix = "" if stack == "encoder" else "decoder_"
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError(f"give exactly one of {prefix}input_ids and {prefix}inputs_embeds")
    shape = input_ids.shape if input_ids is not None else inputs_embeds.shape[:2]
    if len(shape) != 2:
        raise ValueError(f"{prefix}input_ids has shape {tuple(shape)}; expected (batch, length)")
    if shape[1] == 0:
        raise ValueError(f"{prefix}input_ids has shape {tuple(shape)}; expected a length above 0")
    for name, tensor in ((f"{prefix}attention_mask", mask), (f"{stack}_segments", segments)):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; expected {tuple(shape)}, like the input"
            )
    return tuple(shape)


def check_ids(name: str, ids: Tensor, vocab_size: int) -> None:
    """Refuse an id that the vocabulary lacks; on CPU only, elsewhere it would wait for the device.

    Raises:
        ValueError: naming the argument and the id.
    """
    if ids.device.type != "cpu" or not ids.numel() or torch.compiler.is_compiling():
        return
    for found in (int(ids.min()), int(ids.max())):
        if not 0 <= found < vocab_size:
            raise ValueError(f"{name} holds {found}; expected ids below vocab_size, {vocab_size}")


def refuse_attentions(output_attentions: bool | None) -> None:
    """Raise a ValueError if attention weights are asked for: they are never materialised."""
    if output_attentions:
        raise ValueError("output_attentions=True: expected false; fused attention keeps no weights")
