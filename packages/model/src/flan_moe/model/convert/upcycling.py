"""Sparse upcycling (Komatsuzaki et al. 2023): experts that start as copies of a dense network."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flan_moe.model.config import FlanMoEConfig
from flan_moe.model.convert.assemble import Target
from flan_moe.model.convert.conversion import write_config
from flan_moe.model.convert.experts_of import UpcycleOptions, expert_wi, expert_wo, varied
from flan_moe.model.convert.opened import open_as_flan_moe
from flan_moe.model.convert.output import (
    DEFAULT_SHARD_BYTES,
    Progress,
    check_new,
    copy_companions,
    new_directory,
    write_weights,
)
from flan_moe.model.convert.output_change import (
    OutputChange,
    change,
    sample_logits,
)
from flan_moe.model.convert.sparse_config import check_upcycled
from flan_moe.model.convert.weights import model_targets, weight_shapes
from flan_moe.model.modeling import FlanMoEForConditionalGeneration
from flan_moe.routing import Router, RouterConfig, build_router

_SPARSE_WEIGHT = re.compile(
    r"((encoder|decoder)\.layers\.\d+)\."
    r"(?:feed_forward\.experts\.(wi|wo)|feed_forward\.router\.(\w+)"
    r"|extra_feed_forward\.(wi|wo)\.weight|(extra_feed_forward_norm)\.weight)"
)


@dataclass(frozen=True)
class Upcycling:
    """What `upcycle` made.

    Attributes:
        config: of the sparse model.
        num_bytes: of its weights.
        change: of the output, measured; None if that was not asked for.
    """

    config: FlanMoEConfig
    num_bytes: int
    change: OutputChange | None


def upcycle(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    config: FlanMoEConfig,
    options: UpcycleOptions | None = None,
    *,
    measure: bool = True,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Progress | None = None,
) -> Upcycling:
    """Make a sparse checkpoint of a dense one, expert after expert.

    Every expert is a copy of the layer's dense network, or of a slice of it; routers are drawn
    anew; everything else is as it was. An extra dense network, if the target has one, starts with a
    zero output. Memory holds one dense network and one expert, unless ``measure``.

    The function is unchanged, up to rounding, where a token's weights sum to one and nothing is
    dropped: top-k with ``renormalise``. With raw gates it is not: a token's weights are then about
    k/E of what the dense network had.

    Args:
        source: a dense checkpoint of any layout that `convert` reads (T5X excepted).
        destination: a directory that does not exist.
        config: of the sparse model, with the sizes of the dense one; see `upcycled_config`.
        options: noise and the like; None for exact copies.
        measure: compare the logits of both models on sample tokens, see `OutputChange`. Each model
            has to fit into memory, one at a time.
        shard_bytes: see `write_weights`.
        progress: see `Progress`.

    Raises:
        ValueError: if source and configuration do not fit, or the source is damaged.
        OSError: if a file is not there, the destination exists, or the disk is full.
    """
    path, destination = Path(source), Path(destination)
    check_new(destination)
    dense = open_as_flan_moe(path)
    targets = upcycled_targets(dense.config, dense.targets, config, options or UpcycleOptions())
    with new_directory(destination) as directory:
        size = write_weights(directory, targets, shard_bytes=shard_bytes, progress=progress)
        copy_companions(path, directory)
        write_config(config, targets, directory)
    if not measure:
        return Upcycling(config, size, None)
    before = sample_logits(_model(dense.config, dense.targets))
    sparse = open_as_flan_moe(destination)
    after = sample_logits(_model(sparse.config, sparse.targets))
    return Upcycling(config, size, change(before, after))


def upcycle_model(
    model: FlanMoEForConditionalGeneration,
    config: FlanMoEConfig,
    options: UpcycleOptions | None = None,
) -> FlanMoEForConditionalGeneration:
    """The sparse model that `upcycle` would make of a dense one, in memory, in evaluation mode.

    Raises:
        ValueError: if model and configuration do not fit.
    """
    targets = upcycled_targets(
        model.config, model_targets(model), config, options or UpcycleOptions()
    )
    return _model(config, targets)


def upcycled_targets(
    dense: FlanMoEConfig,
    dense_targets: list[Target],
    sparse: FlanMoEConfig,
    options: UpcycleOptions,
) -> list[Target]:
    """The weights of a sparse model, to be made from those of a dense one.

    Args:
        dense: configuration of the dense model.
        dense_targets: its weights.
        sparse: configuration of the sparse model.
        options: noise and the like.

    Raises:
        ValueError: if the configurations do not fit.
    """
    granularity = check_upcycled(dense, sparse)
    weights = {target.name: target for target in dense_targets}
    targets = []
    for name, shape in weight_shapes(sparse).items():
        match = _SPARSE_WEIGHT.fullmatch(name)
        if match is None:
            targets.append(weights[name])
            continue
        layer, stack, expert_matrix, router_tensor, extra_matrix, _ = match.groups()
        router = sparse.router_config(stack)
        assert router is not None  # the layer is sparse
        if expert_matrix:
            base = weights[f"{layer}.feed_forward.{expert_matrix}.weight"]
            parts = _ExpertParts(
                base, layer, expert_matrix, sparse.is_gated, router, granularity, options
            )
            targets.append(Target(name, shape, base.dtype, parts))
        elif router_tensor:
            dtype = weights[f"{layer}.feed_forward.wi.weight"].dtype
            value = _router_state(router, sparse.d_model, layer, granularity, options, dtype)
            targets.append(_constant(name, value[router_tensor]))
        elif extra_matrix:
            base = weights[f"{layer}.feed_forward.{extra_matrix}.weight"]
            if extra_matrix == "wi":
                targets.append(Target(name, shape, base.dtype, base.parts))
            else:
                targets.append(_constant(name, torch.zeros(shape, dtype=base.dtype)))
        else:
            norm = weights[f"{layer}.feed_forward_norm.weight"]
            targets.append(Target(name, shape, norm.dtype, norm.parts))
    return targets


@dataclass(frozen=True)
class _ExpertParts:
    """The stack of one layer's experts; the dense matrix is read once."""

    base: Target
    layer: str
    matrix: str
    gated: bool
    router: RouterConfig
    granularity: int
    options: UpcycleOptions

    def __call__(self) -> Iterator[Tensor]:
        dense = self.base.tensor()
        for expert in range(self.router.num_experts):
            yield self._expert(dense, expert)

    def _expert(self, dense: Tensor, expert: int) -> Tensor:
        slice_index = expert % self.granularity
        place = {"layer": self.layer, "expert": expert}
        if self.matrix == "wi":
            halves = expert_wi(dense, slice_index, self.granularity, gated=self.gated)
            return torch.cat(
                [
                    varied(half_fD, self.options, **place, matrix=f"wi_{i}", unit_dim=0)
                    for i, half_fD in enumerate(halves)
                ]
            ).T
        wo_Df = expert_wo(dense, slice_index, self.granularity)
        wo_Df = varied(wo_Df, self.options, **place, matrix="wo", unit_dim=1)
        scale = self.granularity / self.router.weight_scale
        return (wo_Df if scale == 1 else wo_Df * scale).T


def _router_state(
    router: RouterConfig,
    d_model: int,
    layer: str,
    granularity: int,
    options: UpcycleOptions,
    dtype: torch.dtype,
) -> Mapping[str, Tensor]:
    """A fresh router: one row per copy of the network, repeated for its slices."""
    state = build_router(router, d_model).state_dict()
    if "weight" in state:
        copies = router.num_experts // granularity
        generator = options.generator(layer, "router")
        row_CD = options.router_std * torch.randn(copies, d_model, generator=generator)
        state["weight"] = row_CD.repeat_interleave(granularity, dim=0).to(dtype)
    return state


def _constant(name: str, value: Tensor) -> Target:
    return Target(name, tuple(value.shape), value.dtype, lambda: iter([value]))


def _model(config: FlanMoEConfig, targets: list[Target]) -> FlanMoEForConditionalGeneration:
    state = {target.name: target.tensor() for target in targets}
    with torch.device("meta"):
        model = FlanMoEForConditionalGeneration(config)
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["shared.weight"]
    model.load_state_dict(state, assign=True)
    for module in model.modules():
        if isinstance(module, Router) and module.step_load_E is not None:
            module.step_load_E = torch.zeros(module.num_experts)  # in no state dict
    model.tie_weights()
    return model.eval()
