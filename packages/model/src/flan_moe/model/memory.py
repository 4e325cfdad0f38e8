"""Memory that a model's weights, gradients, optimizer and caches take, from shapes alone.

Activations, temporary buffers and the weight copies of autocast depend on batch and backend and
are not counted; nor are the step counters of optimizers.

Symbols: K width of a head, S encoder length, L decoder length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from flan_moe.model.config import FlanMoEConfig
from flan_moe.model.inventory import Tensors, parameter_tensors

OptimizerName = Literal["adamw", "adafactor"]

OPTIMIZERS: tuple[OptimizerName, ...] = ("adamw", "adafactor")

_FLOAT32 = torch.float32.itemsize


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Bytes that training holds from step to step, on one device without sharding.

    Attributes:
        weights: the parameters, float32.
        gradients: one float32 number for each.
        optimizer: its float32 states.
    """

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """Their sum."""
        return self.weights + self.gradients + self.optimizer


def training_memory(
    config: FlanMoEConfig, optimizer: OptimizerName, *, least_factored_side: int = 128
) -> TrainingMemory:
    """Bytes to train all parameters in float32.

    ``"adamw"`` keeps two moments of each parameter. ``"adafactor"`` (Shazeer and Stern 2018,
    without momentum) keeps the second moment only, and of a matrix only its row and column means
    if both sides are long enough; the experts of a layer are that many matrices, as in T5X.

    Args:
        config: the model.
        optimizer: one of `OPTIMIZERS`.
        least_factored_side: shortest side of a matrix that Adafactor factors; 128 in T5X, optax
            and ``flan_moe.train``, 1 in torch and transformers.

    Raises:
        ValueError: for another optimizer.
    """
    if optimizer not in OPTIMIZERS:
        raise ValueError(
            f"optimizer {optimizer!r}: expected one of {', '.join(map(repr, OPTIMIZERS))}"
        )
    tensors = parameter_tensors(config)
    size = sum(group.size for group in tensors)
    if optimizer == "adamw":
        states = 2 * size
    else:
        states = sum(_second_moment_size(group, least_factored_side) for group in tensors)
    return TrainingMemory(
        weights=_FLOAT32 * size, gradients=_FLOAT32 * size, optimizer=_FLOAT32 * states
    )


def _second_moment_size(group: Tensors, least_factored_side: int) -> int:
    *stacked, rows, columns = (1, *group.shape)
    if len(group.shape) < 2 or min(rows, columns) < least_factored_side:
        return group.size
    return group.copies * torch.Size(stacked).numel() * (rows + columns)


def weight_bytes(config: FlanMoEConfig, dtype: torch.dtype) -> int:
    """Bytes of all parameters in ``dtype``: what loading a model for inference takes."""
    return dtype.itemsize * sum(group.size for group in parameter_tensors(config))


def cache_bytes(
    config: FlanMoEConfig, dtype: torch.dtype, *, encoder_length: int, decoder_length: int
) -> int:
    """Bytes of the keys and values that generating one sequence keeps.

    In each decoder layer, of its L own positions and of the S positions of the encoder. Room for
    growth, which greedy decoding and sampling make, at most as much again as the own positions
    take, is not counted.
    """
    width = 2 * config.num_heads * config.d_kv
    positions = encoder_length + decoder_length
    return dtype.itemsize * config.num_decoder_layers * width * positions
