"""How large a model is and what a token costs, without allocating weights.

FLOPs are those of the forward pass, two per multiply-accumulate of a matrix product; norms,
activations and softmax are left out. Training costs about three times as much. Symbols: D model
width, I = heads * head width, F hidden width, E experts, V vocabulary, S encoder length, L decoder
length.
"""

from __future__ import annotations

from dataclasses import dataclass

from flan_moe.model.config import FlanMoEConfig, StackName
from flan_moe.model.inventory import experts_per_token, parameter_tensors


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Numbers of parameters.

    Attributes:
        total: all of them; a tied head counts once.
        active: those outside embedding and head that take part in computing a token, over both
            stacks: of the experts, the share that a token visits.
        embedding: embedding and, if untied, head.
        router: routers.
    """

    total: int
    active: int
    embedding: int
    router: int


@dataclass(frozen=True, kw_only=True)
class FlopsPerToken:
    """Forward FLOPs per real token.

    ``encoder * (encoder tokens) + decoder * (decoder tokens)`` is the cost of a batch.

    Attributes:
        encoder: per encoder token, with the decoder's cross-attention keys and values, which are
            computed once per encoder token.
        decoder: per decoder token, with the head.
        cross_keys_values: the part of ``encoder`` that belongs to the decoder's layers.
    """

    encoder: float
    decoder: float
    cross_keys_values: float

    @property
    def encoder_stack(self) -> float:
        """Per token, of the encoder's own layers."""
        return self.encoder - self.cross_keys_values

    @property
    def decoder_stack(self) -> float:
        """Per token, of the decoder's layers and head, with as many encoder as decoder tokens.

        Counting ``2 * parameters`` of each stack gives these two, and the same mean.
        """
        return self.decoder + self.cross_keys_values

    @property
    def mean(self) -> float:
        """Mean of the two, the figure that the Flan-MoE paper compares models by.

        A token passes through one of the two stacks, so this is about the number of active
        parameters.
        """
        return (self.encoder + self.decoder) / 2


def count_parameters(config: FlanMoEConfig) -> ParameterCount:
    """Count the parameters of the model that ``config`` describes, on the meta device."""
    tensors = parameter_tensors(config)
    embedding = sum(group.size for group in tensors if group.part == "embedding")
    return ParameterCount(
        total=sum(group.size for group in tensors),
        active=round(sum(group.used * group.size for group in tensors)) - embedding,
        embedding=embedding,
        router=sum(group.size for group in tensors if group.part == "router"),
    )


def flops_per_token(
    config: FlanMoEConfig,
    *,
    encoder_length: int = 512,
    decoder_length: int = 128,
    include_head: bool = True,
) -> FlopsPerToken:
    """Forward FLOPs per token.

    Args:
        config: the model.
        encoder_length: S, positions of a row that attention compares a query with; 0 leaves the
            attention scores of the encoder out, as ``6 N D`` estimates do.
        decoder_length: L, the same for the decoder; causality does not reduce it, because fused
            kernels with a bias compute the full square.
        include_head: count the language-model head.

    Returns:
        FLOPs per encoder and per decoder token.
    """
    d_model, inner = config.d_model, config.num_heads * config.d_kv
    projection = 2 * d_model * inner
    scores = 2 * 2 * inner
    encoder = sum(
        4 * projection + scores * encoder_length + _feed_forward(config, "encoder", layer)
        for layer in range(config.num_layers)
    )
    decoder = sum(
        4 * projection
        + scores * decoder_length
        + 2 * projection
        + scores * encoder_length
        + _feed_forward(config, "decoder", layer)
        for layer in range(config.num_decoder_layers)
    )
    cross = config.num_decoder_layers * 2 * projection
    if include_head:
        decoder += 2 * d_model * config.vocab_size
    return FlopsPerToken(encoder=encoder + cross, decoder=decoder, cross_keys_values=cross)


def _feed_forward(config: FlanMoEConfig, stack: StackName, layer: int) -> float:
    matrices = 3 if config.is_gated else 2
    network = 2 * matrices * config.d_model * config.ff_width(stack, layer)
    if not config.is_sparse(stack, layer):
        return network
    router = config.router_config(stack)
    logits = 2 * config.d_model * router.num_experts if router.is_learned else 0
    networks = experts_per_token(router) + config.has_extra_feed_forward(stack, layer)
    return networks * network + logits
