"""`FlanMoEForConditionalGeneration`: the model, with the conventions of transformers.

Shape suffixes: B rows, S encoder positions, L decoder positions, T real tokens, D model width,
V vocabulary.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from flan_moe.experts import BACKENDS, Experts
from flan_moe.model.attention import ATTENTION_BACKENDS, Attention
from flan_moe.model.config import FlanMoEConfig
from flan_moe.model.growing_cache import let_grow
from flan_moe.model.initialization import initialize_module
from flan_moe.model.losses import IGNORED_LABEL, mean_aux_losses, token_cross_entropy, total_loss
from flan_moe.model.output import CACHE_KEY, EncoderOutput, FlanMoEOutput
from flan_moe.model.projection import Projection
from flan_moe.model.segments import TokenLayout, may_attend_across, may_attend_to_cache
from flan_moe.model.shift import shift_right, trailing_layout
from flan_moe.model.stack import (
    Decoder,
    Encoder,
    StackOutput,
    check_ids,
    check_input,
    refuse_attentions,
    token_layout,
)
from flan_moe.model.tied_head import refuse_lost_head


class FlanMoEForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """A T5 v1.1-style encoder-decoder whose feed-forward layers may be experts.

    Saves, loads, generates and registers like any seq2seq model of transformers. Between the
    embedding and the head the residual stream holds real tokens only: padding costs nothing
    outside attention, takes no expert's capacity and enters no auxiliary loss.

    In evaluation mode token-choice routing is dropless unless the config says otherwise, so a
    sequence's output does not depend on what else is in the batch, and cached decoding equals
    teacher forcing. Expert choice (encoder only) does depend on the batch.

    Args:
        config: sizes and options.
    """

    config_class = FlanMoEConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules: ClassVar[list[str]] = ["Block"]
    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "shared.weight"}

    def __init__(self, config: FlanMoEConfig) -> None:
        config.check()
        super().__init__(config)
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = Encoder(config, self.shared)
        self.decoder = Decoder(config, self.shared)
        self.lm_head = Projection(
            config.d_model,
            config.vocab_size,
            std=config.initializer_factor * config.d_model**-0.5,
        )
        self.post_init()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Load a checkpoint as `PreTrainedModel` does.

        Raises:
            ValueError: if ``tie_word_embeddings`` is true for a checkpoint that was saved with a
                head of its own, which would be lost.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.config.tie_word_embeddings and pretrained_model_name_or_path is not None:
            refuse_lost_head(
                pretrained_model_name_or_path,
                subfolder=kwargs.get("subfolder") or "",
                revision=kwargs.get("revision"),
                cache_dir=kwargs.get("cache_dir"),
            )
        return loaded

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        encoder_segments: Tensor | None = None,
        decoder_segments: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[Tensor, ...] | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        output_logits: bool = True,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
    ) -> FlanMoEOutput | tuple[Any, ...]:
        """Encode, decode and, with labels, compute the loss.

        Args:
            input_ids: (B, S) encoder tokens.
            attention_mask: (B, S), nonzero at real tokens; None if all are.
            decoder_input_ids: (B, L) decoder tokens; made from ``labels`` if absent.
            decoder_attention_mask: (B, L), or (B, cached + L) with a cache; nonzero at real
                tokens; None if all are.
            labels: (B, L), -100 where no loss is wanted. Unless a mask, segments or a cache say
                otherwise, positions after a row's last other label count as padding.
            encoder_segments: (B, S), 0 for padding, k for the k-th packed sequence of a row;
                takes the place of ``attention_mask``.
            decoder_segments: (B, L), the same for the decoder; segment k reads segment k of the
                encoder, which must have one (checked on the CPU). Given together with
                ``encoder_segments``.
            encoder_outputs: output of the encoder, in place of its inputs.
            past_key_values: cache of earlier decoder positions; not for packed rows.
            inputs_embeds: (B, S, D) in place of ``input_ids``.
            decoder_inputs_embeds: (B, L, D) in place of ``decoder_input_ids``.
            use_cache: return a cache for the next step.
            output_hidden_states: return the states of all layers, padded; None for what the config
                says.
            output_attentions: refused if true: attention weights are never materialised.
            output_logits: False saves the padded (B, L, V) logits when only the loss is wanted.
            return_dict: False for a tuple; None for what the config says.
            cache_position: ignored; the cache knows its length.
            cache: another name of ``past_key_values``, which transformers uses since 5.24.

        Returns:
            See `FlanMoEOutput`.

        Raises:
            ValueError: if the arguments do not fit together.
        """
        refuse_attentions(output_attentions)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if return_dict is None:
            return_dict = self.config.return_dict
        if cache is not None and past_key_values is not None:
            raise ValueError("cache and past_key_values are two names of one thing: give one")
        cache = past_key_values if cache is None else cache
        self._check_cache(cache, encoder_segments, decoder_segments)
        if encoder_outputs is None:
            memory_layout = token_layout(
                "encoder", input_ids, inputs_embeds, attention_mask, encoder_segments
            )
            encoder_outputs = self.encoder(
                input_ids=input_ids,
                inputs_embeds=inputs_embeds,
                output_hidden_states=output_hidden_states,
                layout=memory_layout,
            )
        else:
            memory_layout = None
            if not isinstance(encoder_outputs, BaseModelOutput):
                encoder_outputs = EncoderOutput.from_tuple(encoder_outputs)
        memory_BSD = encoder_outputs.last_hidden_state
        if cache is None and use_cache:
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        if cache is not None:
            let_grow(cache, len(self.decoder.layers))

        past = 0 if cache is None else cache.get_seq_length()
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self._decoder_input_ids(labels, decoder_segments)
        new_mask = None if decoder_attention_mask is None else decoder_attention_mask[:, past:]
        layout = token_layout(
            "decoder", decoder_input_ids, decoder_inputs_embeds, new_mask, decoder_segments
        )
        if labels is not None:
            _check_labels(labels, layout, self.config.vocab_size)
            if decoder_attention_mask is None and decoder_segments is None and cache is None:
                layout = trailing_layout(labels)
        if cache is not None and cache.is_updated.get(0, False):
            # Keys and values are in the cache. A layout would be read by nobody, and making one
            # in every step of a generation would have the host wait for the device.
            check_input("encoder", None, memory_BSD, attention_mask, None)
            memory_TD = memory_layout = None
            cross_allowed = may_attend_to_cache(layout, memory_BSD.shape[0], attention_mask)
        else:
            if memory_layout is None:
                memory_layout = token_layout(
                    "encoder", None, memory_BSD, attention_mask, encoder_segments
                )
            memory_TD = memory_layout.flatten(memory_BSD)
            cross_allowed = may_attend_across(layout, memory_layout)
        out: StackOutput = self.decoder(
            decoder_input_ids,
            decoder_inputs_embeds,
            layout,
            cross_allowed=cross_allowed,
            memory_TD=memory_TD,
            memory_layout=memory_layout,
            key_mask=decoder_attention_mask if past else None,
            cache=cache,
            output_hidden_states=bool(output_hidden_states),
        )
        routings = (getattr(encoder_outputs, "routings", None) or ()) + out.routings
        aux_losses = None if past else mean_aux_losses(routing for _, routing in routings)
        logits_TV = self._logits(out.x_TD)
        cross_entropy, loss = self._loss(logits_TV, labels, layout, aux_losses)
        output = FlanMoEOutput(
            loss=loss,
            logits=layout.pad(logits_TV) if output_logits else None,
            decoder_hidden_states=out.hidden_states,
            encoder_last_hidden_state=memory_BSD,
            encoder_hidden_states=encoder_outputs.hidden_states,
            cross_entropy=cross_entropy,
            aux_losses=aux_losses,
            routings=routings,
            **{CACHE_KEY: cache},
        )
        return output.to_tuple() if return_dict is False else output

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a new ``shared`` is the embedding of both stacks, too.

        PEFT wraps modules by setting them: LoRA, ``modules_to_save``, trainable tokens.
        """
        super().__setattr__(name, value)
        if name == "shared" and "decoder" in self._modules:
            self.encoder.set_embedding(value)
            self.decoder.set_embedding(value)

    def set_attention_backend(self, backend: str) -> None:
        """Use one attention implementation everywhere: ``"auto"``, ``"sdpa"`` or ``"xformers"``.

        Raises:
            ValueError: for any other name.
        """
        if backend not in ATTENTION_BACKENDS:
            known = ", ".join(map(repr, ATTENTION_BACKENDS))
            raise ValueError(f"attention backend {backend!r}: expected one of {known}")
        for module in self.modules():
            if isinstance(module, Attention):
                module.backend = backend

    def set_expert_backend(self, backend: str) -> None:
        """Use one expert implementation everywhere, see `flan_moe.experts.expert_ffn`.

        Raises:
            ValueError: for a name that is not in `flan_moe.experts.BACKENDS`.
        """
        if backend not in BACKENDS:
            known = ", ".join(map(repr, BACKENDS))
            raise ValueError(f"expert backend {backend!r}: expected one of {known}")
        for module in self.modules():
            if isinstance(module, Experts):
                module.backend = backend

    def reserve_gradients(self, *, accumulate: bool) -> None:
        """Give all experts lasting gradient buffers, or give them back after ``zero_grad()``.

        On a CPU this saves fresh memory of the size of the experts in every step. In a training
        loop, between ``optimizer.zero_grad()`` and each forward pass; see
        `flan_moe.experts.Experts.reserve_gradients`.

        Args:
            accumulate: False before the first backward pass of an optimizer step, which overwrites
                what the buffers hold; True before further ones, which add to it.

        Raises:
            RuntimeError: if the experts are spread over ranks.
        """
        for module in self.modules():
            if isinstance(module, Experts):
                module.reserve_gradients(accumulate=accumulate)

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Shift labels right; called by transformers' `DataCollatorForSeq2Seq`."""
        return self._decoder_input_ids(labels, None)

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding that encoder and decoder share."""
        return self.shared

    def set_input_embeddings(self, embeddings: nn.Embedding) -> None:
        """Replace the embedding of encoder and decoder."""
        self.shared = embeddings

    def get_output_embeddings(self) -> nn.Linear:
        """The language-model head."""
        return self.lm_head

    def set_output_embeddings(self, head: nn.Linear) -> None:
        """Replace the language-model head."""
        self.lm_head = head

    def get_encoder(self, modality: str | None = None) -> Encoder:
        """The encoder; there is only the one for text."""
        return self.encoder

    def get_decoder(self) -> Decoder:
        """The decoder."""
        return self.decoder

    def _init_weights(self, module: nn.Module) -> None:
        initialize_module(module, self.config)

    def _logits(self, x_TD: Tensor) -> Tensor:
        if self.config.tie_word_embeddings:
            x_TD = x_TD * self.config.d_model**-0.5
        return self.lm_head(x_TD)

    def _loss(
        self,
        logits_TV: Tensor,
        labels: Tensor | None,
        layout: TokenLayout,
        aux_losses: dict[str, Tensor] | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        if labels is None:
            return None, None
        cross_entropy = token_cross_entropy(logits_TV, layout.flatten(labels))
        return cross_entropy, total_loss(cross_entropy, aux_losses or {}, self.config.aux_coefs)

    def _decoder_input_ids(self, labels: Tensor, segments: Tensor | None) -> Tensor:
        return shift_right(
            labels,
            start_token_id=self.config.decoder_start_token_id,
            pad_token_id=self.config.pad_token_id,
            segments_BL=segments,
        )

    @staticmethod
    def _check_cache(cache: EncoderDecoderCache | None, *segments: Tensor | None) -> None:
        if cache is None:
            return
        if any(tensor is not None for tensor in segments):
            raise ValueError("past_key_values with packed segments: expected one or the other")
        if not isinstance(cache, EncoderDecoderCache) or getattr(cache, "is_compileable", False):
            raise ValueError(
                f"past_key_values is a {type(cache).__name__}; expected an EncoderDecoderCache of "
                "two DynamicCache (static caches are not supported)"
            )


def _check_labels(labels: Tensor, layout: TokenLayout, vocab_size: int) -> None:
    expected = (layout.batch_size, layout.length)
    if labels.shape != expected:
        raise ValueError(
            f"labels has shape {tuple(labels.shape)}; expected {expected}, like the decoder input"
        )
    if labels.device.type == "cpu":
        check_ids("labels", labels.masked_fill(labels == IGNORED_LABEL, 0), vocab_size)
