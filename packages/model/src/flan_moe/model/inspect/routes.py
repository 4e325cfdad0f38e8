"""`Routes`: which expert worked on which token of a text, in every sparse layer, as plain data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

FORMAT = "flan-moe-routes"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Token:
    """A token as people read it.

    Attributes:
        id: in the vocabulary.
        piece: its text, spaces included, as it stands in the whole text; never escaped.
    """

    id: int
    piece: str


@dataclass(frozen=True, kw_only=True)
class LayerRoutes:
    """What one router did.

    Attributes:
        stack: ``"encoder"`` or ``"decoder"``.
        layer: index in the stack.
        num_experts: E.
        experts: for each token the experts that worked on it, by falling weight (ties: lowest
            index first); empty for a token that was dropped or that no expert chose.
        weights: combine weights, in the same order.
        router_entropy: mean over tokens of the entropy of the softmax of the router's logits, in
            nats; ln E where a router has none, as for hash routing.
    """

    stack: str
    layer: int
    num_experts: int
    experts: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[float, ...], ...]
    router_entropy: float

    @property
    def name(self) -> str:
        """As in the model: ``encoder.layers.1``."""
        return f"{self.stack}.layers.{self.layer}"

    @property
    def first(self) -> tuple[int | None, ...]:
        """The expert of the largest weight of each token; None for a token without experts."""
        return tuple(experts[0] if experts else None for experts in self.experts)

    @property
    def load(self) -> tuple[int, ...]:
        """(E,) tokens that each expert worked on."""
        load = [0] * self.num_experts
        for experts in self.experts:
            for expert in experts:
                load[expert] += 1
        return tuple(load)

    @property
    def dropped(self) -> tuple[int, ...]:
        """Positions of the tokens that no expert worked on."""
        return tuple(position for position, experts in enumerate(self.experts) if not experts)

    @property
    def effective_experts(self) -> float:
        """``exp`` of the entropy of the load shares, 1 to E; 0 without load.

        As `flan_moe.routing.metrics.expert_usage`.
        """
        total = sum(self.load)
        shares = [load / total for load in self.load if load]
        return math.exp(-sum(share * math.log(share) for share in shares)) if shares else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON; loads and what follows from them included."""
        return {
            "stack": self.stack,
            "layer": self.layer,
            "num_experts": self.num_experts,
            "experts": [list(experts) for experts in self.experts],
            "weights": [list(weights) for weights in self.weights],
            "load": list(self.load),
            "dropped": list(self.dropped),
            "router_entropy": self.router_entropy,
            "effective_experts": self.effective_experts,
        }


@dataclass(frozen=True, kw_only=True)
class Routes:
    """The way of one text through the experts of one model.

    Attributes:
        model: where the model came from.
        text: input of the encoder.
        target: text of the decoder.
        target_ids: its tokens, the last one included.
        generated: whether the model wrote ``target`` itself.
        encoder: tokens that the encoder read.
        decoder: tokens that the decoder read: the start token, then ``target_ids`` but for the last
            one. What a token's experts compute serves to predict the next one.
        layers: the sparse layers, encoder first.

    Raises:
        ValueError: if a layer and its stack differ in the number of tokens.
    """

    model: str
    text: str
    target: str
    target_ids: tuple[int, ...]
    generated: bool
    encoder: tuple[Token, ...]
    decoder: tuple[Token, ...]
    layers: tuple[LayerRoutes, ...]

    def __post_init__(self) -> None:
        for layer in self.layers:
            expected = len(self.tokens(layer.stack))
            if not len(layer.experts) == len(layer.weights) == expected:
                raise ValueError(
                    f"{self.model}: {layer.name} routed {len(layer.experts)} tokens; expected "
                    f"the {expected} of the {layer.stack}"
                )

    def tokens(self, stack: str) -> tuple[Token, ...]:
        """The tokens that a stack read."""
        return self.encoder if stack == "encoder" else self.decoder

    def select(self, *, stack: str | None = None, layers: Sequence[int] = ()) -> Routes:
        """The same with fewer layers.

        Args:
            stack: keep this stack's only; None for both.
            layers: keep these indices only; empty for all.

        Raises:
            ValueError: if an index is no sparse layer of the stacks that are kept, or nothing
                is left.
        """
        kept = [layer for layer in self.layers if stack in (None, layer.stack)]
        have = ", ".join(f"{layer.stack} {layer.layer}" for layer in self.layers)
        if not kept:
            raise ValueError(f"{self.model}: the {stack} has no sparse layers; there are {have}")
        for index in layers:
            if index not in {layer.layer for layer in kept}:
                raise ValueError(
                    f"{self.model}: layer {index} of the {stack or 'model'} is not sparse; the "
                    f"sparse layers are {have}"
                )
        return replace(
            self, layers=tuple(layer for layer in kept if not layers or layer.layer in layers)
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON: ``format``, ``version``, the fields above, and per layer what follows."""
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "model": self.model,
            "text": self.text,
            "target": self.target,
            "target_ids": list(self.target_ids),
            "generated": self.generated,
            **{
                stack: [{"id": token.id, "piece": token.piece} for token in self.tokens(stack)]
                for stack in ("encoder", "decoder")
            },
            "layers": [layer.to_dict() for layer in self.layers],
        }
