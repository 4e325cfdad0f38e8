"""From the recipe's optimizer section to an optimizer over a model's parameters."""

from __future__ import annotations

import torch
from torch import nn

from flan_moe.train.adafactor import ExpertAdafactor
from flan_moe.train.recipe_schema import Adafactor, AdamW

UNDECAYED = ("position_bias",)
"""Parameters of modules of these names are exempt from weight decay, as all vectors are."""


def build_optimizer(section: AdamW | Adafactor, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer a recipe asks for.

    Args:
        section: The recipe's optimizer section.
        model: The model; its parameters that do not require gradients are left out.

    Returns:
        The optimizer, with weight decay on matrices and expert stacks only.
    """
    groups = parameter_groups(model, section.weight_decay)
    if isinstance(section, AdamW):
        return torch.optim.AdamW(groups, lr=section.lr, betas=section.betas, eps=section.eps)
    return ExpertAdafactor(
        groups,
        lr=section.lr,
        decay=section.decay,
        clip_threshold=section.clip_threshold,
        scale_parameter=section.scale_parameter,
        min_dim_size_to_factor=section.min_dim_size_to_factor,
    )


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Parameters with and without weight decay: norms, biases and position biases go without."""
    decayed, undecayed = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        exempt = parameter.dim() < 2 or any(word in name.split(".") for word in UNDECAYED)
        (undecayed if exempt else decayed).append(parameter)
    groups = [(decayed, weight_decay), (undecayed, 0.0)]
    return [{"params": p, "weight_decay": decay} for p, decay in groups if p]
