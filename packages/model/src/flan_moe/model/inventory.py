"""The parameter tensors of a model, without building it.

One layer of each kind (dense or sparse, of one width) is built on the meta device and counted as
often as it occurs: the shapes are those of the modules, no weight is allocated, and a model of any
depth takes a few hundredths of a second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from flan_moe.experts import Experts
from flan_moe.model.block import Block
from flan_moe.model.config import STACK_NAMES, FlanMoEConfig, StackName
from flan_moe.model.position_bias import RelativePositionBias
from flan_moe.routing import Router, RouterConfig

Part = Literal["embedding", "router", "experts", "other"]


class Tensors(NamedTuple):
    """Parameters of one name and shape.

    Attributes:
        name: in the model's state dict; that of the first layer of the kind.
        shape: of each.
        copies: how many layers have one.
        part: what it belongs to; the head counts as embedding.
        used: the share of it that works on one token: less than 1 for experts.
    """

    name: str
    shape: tuple[int, ...]
    copies: int
    part: Part
    used: float

    @property
    def size(self) -> int:
        """Elements of all copies."""
        return self.copies * torch.Size(self.shape).numel()


def experts_per_token(router: RouterConfig) -> float:
    """Experts that work on a token, on average and before any drop.

    With expert choice each of E experts takes ``capacity_factor * T / E`` of T tokens.
    """
    if router.selection == "expert_choice":
        assert router.capacity_factor is not None  # RouterConfig refuses it
        return min(router.capacity_factor, router.num_experts)
    return router.top_k


def parameter_tensors(config: FlanMoEConfig) -> list[Tensors]:
    """Every parameter of the model that ``config`` describes; a tied head is not listed again."""
    embedding = (config.vocab_size, config.d_model)
    tensors = [Tensors("shared.weight", embedding, 1, "embedding", 1.0)]
    if not config.tie_word_embeddings:
        tensors.append(Tensors("lm_head.weight", embedding, 1, "embedding", 1.0))
    for stack in STACK_NAMES:
        tensors.extend(_stack_tensors(config, stack))
    return tensors


def _stack_tensors(config: FlanMoEConfig, stack: StackName) -> Iterator[Tensors]:
    router = config.router_config(stack)
    used = 1.0 if router is None else experts_per_token(router) / router.num_experts
    layers = range(config.layer_count(stack))
    kinds = [(config.is_sparse(stack, i), config.ff_width(stack, i)) for i in layers]
    for kind, copies in Counter(kinds).items():
        layer = kinds.index(kind)
        with torch.device("meta"), _NoRandomNumbers():
            block = Block(config, stack, layer)
        for name, shape, part in _named_parts(block):
            share = used if part == "experts" else 1.0
            yield Tensors(f"{stack}.layers.{layer}.{name}", shape, copies, part, share)
    with torch.device("meta"), _NoRandomNumbers():
        ends = nn.ModuleDict(
            {
                "position_bias": RelativePositionBias(
                    num_heads=config.num_heads,
                    num_buckets=config.relative_attention_num_buckets,
                    max_distance=config.relative_attention_max_distance,
                    bidirectional=stack == "encoder",
                ),
                "final_norm": nn.RMSNorm(config.d_model),
            }
        )
    for name, shape, part in _named_parts(ends):
        yield Tensors(f"{stack}.{name}", shape, 1, part, 1.0)


def _named_parts(module: nn.Module) -> Iterator[tuple[str, tuple[int, ...], Part]]:
    part_of: dict[int, Part] = {}
    for child in module.modules():
        if isinstance(child, Router | Experts):
            part: Part = "router" if isinstance(child, Router) else "experts"
            part_of.update((id(parameter), part) for parameter in child.parameters())
    for name, parameter in module.named_parameters():
        yield name, tuple(parameter.shape), part_of.get(id(parameter), "other")


class _NoRandomNumbers(TorchFunctionMode):
    """Leaves tensors as they are instead of filling them from a normal distribution.

    On the meta device that fills nothing, but the first time it imports torch's compiler, which
    takes longer than everything else here.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is nn.init.normal_:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
