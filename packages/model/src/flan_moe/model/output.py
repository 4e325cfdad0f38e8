"""What the encoder and the model return.

Shape suffixes: B rows, S encoder positions, L decoder positions, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from flan_moe.routing import Routing

NamedRoutings = tuple[tuple[str, Routing], ...]
"""Routings with the name of the module that made them, as in ``named_modules()``."""

CACHE_KEY = "cache" if "cache" in Seq2SeqLMOutput.__dataclass_fields__ else "past_key_values"
"""What outputs call the key-value cache: ``past_key_values``, or ``cache`` (transformers 5.24)."""


@dataclass
class EncoderOutput(BaseModelOutput):
    """Output of the encoder.

    Attributes:
        last_hidden_state: (B, S, D), zero at padding.
        hidden_states: embeddings, then the output of every layer (the last one after the final
            norm), each like ``last_hidden_state``; None unless asked for.
        attentions: always None: attention weights are never materialised.
        routings: one entry per sparse layer.
    """

    routings: NamedRoutings | None = None

    @classmethod
    def from_tuple(cls, values: Sequence[Any]) -> EncoderOutput:
        """The output again from ``to_tuple()``, which leaves out what is None.

        Args:
            values: the last hidden state; hidden states and routings follow if they were there.
        """
        last_hidden_state, *others = values
        states = [value for value in others if value and isinstance(value[0], Tensor)]
        routings = [value for value in others if value and isinstance(value[0], tuple)]
        return cls(
            last_hidden_state=last_hidden_state,
            hidden_states=states[0] if states else None,
            routings=routings[0] if routings else None,
        )


@dataclass
class FlanMoEOutput(Seq2SeqLMOutput):
    """Output of the model: `Seq2SeqLMOutput` plus what a trainer needs to know about the experts.

    Attributes:
        loss: cross-entropy plus the weighted auxiliary losses; None without labels.
        logits: (B, L, V), zero at padding; None if ``output_logits=False``.
        past_key_values: the cache, given or asked for; named ``cache`` since transformers 5.24.
        cross_entropy: mean over label tokens other than -100; None without labels.
        aux_losses: unweighted auxiliary losses by name, each the mean over the sparse layers of
            both stacks; empty for a dense model, None in a cached decoding step.
        routings: one entry per sparse layer, encoder first.
    """

    cross_entropy: Tensor | None = None
    aux_losses: dict[str, Tensor] | None = None
    routings: NamedRoutings | None = None
