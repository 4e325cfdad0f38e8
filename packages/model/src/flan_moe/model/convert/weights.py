"""Our weights and their names in other layouts: what is made from what."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flan_moe.model.config import FlanMoEConfig
from flan_moe.model.convert.assemble import Target, assembled, row_parts
from flan_moe.model.convert.hf_names import EMBEDDING_COPIES, UNUSED, HFFormat, hf_links
from flan_moe.model.convert.region import Link, Region, Shape, source_shapes, whole
from flan_moe.model.convert.source import (
    StateSource,
    TensorSource,
    check_floating,
    check_tensors,
    some,
)
from flan_moe.model.modeling import FlanMoEForConditionalGeneration


def weight_shapes(config: FlanMoEConfig) -> dict[str, Shape]:
    """Shapes of the tensors in a Flan-MoE checkpoint; nothing is allocated."""
    with torch.device("meta"):
        model = FlanMoEForConditionalGeneration(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in tied_head(config):
        del shapes[name]
    return shapes


def import_targets(
    config: FlanMoEConfig,
    source: TensorSource,
    links: list[Link],
    allowed: frozenset[str] = frozenset(),
) -> list[Target]:
    """Our weights, to be made from a source with other names.

    Args:
        config: of our model.
        source: the other names.
        links: from theirs to ours.
        allowed: names that the source may have besides.

    Raises:
        ValueError: if tensors are missing, left over, of other shapes or not of floating point.
    """
    shapes = weight_shapes(config)
    check_linked(shapes, links, source.origin)
    theirs = source_shapes(links, shapes)
    check_tensors(source, theirs, allowed=allowed)
    check_floating(source, theirs)
    return assembled(links, shapes, source)


def import_hf(
    config: FlanMoEConfig, source: TensorSource, layout: HFFormat
) -> tuple[list[Target], list[str]]:
    """Our weights, to be made from those of transformers, and what a user should know.

    A tied weight may be there under several names, whose contents have to be equal.

    Raises:
        ValueError: see `import_targets`.
    """
    links = hf_links(config, layout)
    names = ("shared.weight", *EMBEDDING_COPIES, *tied_head(config))
    present = [name for name in names if name in source.tensors]
    if present and present[0] != "shared.weight":
        links[0] = Link(links[0].target, Region(present[0]))
    targets = import_targets(config, source, links, UNUSED | set(present[1:]))
    for copy in present[1:]:
        _check_copy(source, present[0], copy)
    unused = sorted(UNUSED & source.tensors.keys())
    return targets, [f"left out {name}, which nothing uses" for name in unused]


def export_targets(config: FlanMoEConfig, source: TensorSource, layout: HFFormat) -> list[Target]:
    """The weights of a checkpoint of transformers, to be made from ours.

    Args:
        config: of our model.
        source: our weights.
        layout: what to make.

    Raises:
        ValueError: if tensors are missing, left over or of other shapes, or have no name there.
    """
    shapes = weight_shapes(config)
    links = hf_links(config, layout)
    check_linked(shapes, links, f"{source.origin} to {layout}")
    check_tensors(source, shapes, allowed=tied_head(config))
    theirs = source_shapes(links, shapes)
    return assembled([link.reversed() for link in links], theirs, source)


def model_targets(model: FlanMoEForConditionalGeneration) -> list[Target]:
    """The weights of a model in memory."""
    shapes = weight_shapes(model.config)
    return assembled(unchanged(shapes), shapes, StateSource(model.state_dict()))


def switch_names(model: FlanMoEForConditionalGeneration) -> dict[str, Tensor]:
    """The state dict that transformers' Switch Transformers would have with the same weights.

    A tied head is not listed again.
    """
    return _hf_names(model, "hf-switch")


def t5_names(model: FlanMoEForConditionalGeneration) -> dict[str, Tensor]:
    """The state dict that transformers' T5 would have with the weights of a dense model."""
    return _hf_names(model, "hf-t5")


def flan_moe_names(
    config: FlanMoEConfig, state: Mapping[str, Tensor], layout: HFFormat
) -> dict[str, Tensor]:
    """Our state dict from one of transformers; the reverse of `switch_names` and `t5_names`.

    Raises:
        ValueError: see `convert`.
    """
    targets, _ = import_hf(config, StateSource(state, "the state dict"), layout)
    return {target.name: target.tensor() for target in targets}


def unchanged(shapes: Mapping[str, Shape]) -> list[Link]:
    """Links from every weight to itself."""
    return [whole(name, name) for name in shapes]


def tied_head(config: FlanMoEConfig) -> frozenset[str]:
    """Names that a checkpoint may have, and ours has not, because they are tied."""
    return frozenset({"lm_head.weight"}) if config.tie_word_embeddings else frozenset()


def _check_copy(source: TensorSource, name: str, copy: str) -> None:
    """Refuse a tied weight whose copies differ: which of them the model has used is unknown."""
    same = source.tensors[name] == source.tensors[copy] and all(
        torch.equal(one, other)
        for one, other in zip(row_parts(source, name), row_parts(source, copy), strict=True)
    )
    if not same:
        raise ValueError(f"{source.origin}: {copy} differs from {name}, to which it is tied")


def check_linked(shapes: Mapping[str, Shape], links: list[Link], origin: str) -> None:
    """Refuse weights that no link has, by name.

    Raises:
        ValueError: see there.
    """
    unlinked = sorted(shapes.keys() - {link.target.name for link in links})
    if unlinked:
        raise ValueError(f"{origin}: no name there for {some(unlinked)}")


def _hf_names(model: FlanMoEForConditionalGeneration, layout: HFFormat) -> dict[str, Tensor]:
    targets = export_targets(model.config, StateSource(model.state_dict()), layout)
    return {target.name: target.tensor() for target in targets}
