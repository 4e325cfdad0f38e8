"""Convert checkpoints of transformers and T5X to Flan-MoE directories and back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from flan_moe.model.config import FlanMoEConfig
from flan_moe.model.convert.assemble import Target, assembled, row_parts
from flan_moe.model.convert.checkpoint import open_checkpoint, read_json
from flan_moe.model.convert.hf_configs import MODEL_TYPES, export_config, import_config
from flan_moe.model.convert.hf_names import EMBEDDING_COPIES, UNUSED, HFFormat, hf_links
from flan_moe.model.convert.output import (
    DEFAULT_SHARD_BYTES,
    Progress,
    check_new,
    copy_companions,
    new_directory,
    write_json,
    write_weights,
)
from flan_moe.model.convert.region import Link, Region, Shape, source_shapes, whole
from flan_moe.model.convert.source import StateSource, TensorSource, check_tensors, some
from flan_moe.model.convert.t5x_names import PREFIX, t5x_links
from flan_moe.model.modeling import FlanMoEForConditionalGeneration

Layout = Literal["flan-moe", "hf-switch", "hf-t5", "t5x"]
LAYOUTS: tuple[Layout, ...] = ("flan-moe", "hf-switch", "hf-t5", "t5x")

PROVENANCE = "conversion.json"
"""File of an imported checkpoint with the configuration it had: what ours cannot say is in it."""


@dataclass(frozen=True)
class Opened:
    """A checkpoint as a Flan-MoE model: nothing but headers has been read.

    Attributes:
        path: where it is.
        layout: what it was.
        config: of our model.
        targets: our weights, to be made from it.
        theirs: its own config.json; empty for T5X.
        notes: what a user should know, in sentences.
    """

    path: Path
    layout: Layout
    config: FlanMoEConfig
    targets: list[Target]
    theirs: Mapping[str, Any]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Conversion:
    """What `convert` did.

    Attributes:
        source_layout: of the checkpoint read.
        target_layout: of the directory written.
        num_tensors: written.
        num_bytes: of all tensors.
        copied: files that were copied besides.
        notes: what a user should know, in sentences.
    """

    source_layout: Layout
    target_layout: Layout
    num_tensors: int
    num_bytes: int
    copied: tuple[str, ...]
    notes: tuple[str, ...]


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    to: Layout = "flan-moe",
    config: FlanMoEConfig | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Progress | None = None,
) -> Conversion:
    """Convert a checkpoint, part of a tensor after part of a tensor.

    Memory holds one part: 64 MiB of a tensor that keeps its layout, one matrix of one expert, or
    a whole matrix that has to be transposed.

    Args:
        source: directory of transformers (T5 or Switch Transformers, in safetensors or
            ``pytorch_model.bin``, sharded or not) or of Flan-MoE; or a flat file of T5X arrays,
            ``.npz`` or ``.safetensors``, with names like ``target/encoder/...``. A T5X or Orbax
            directory has to be exported to such a file first.
        destination: a directory that does not exist.
        to: layout to write: ``"flan-moe"``, or from a Flan-MoE directory ``"hf-switch"`` or
            ``"hf-t5"``.
        config: for T5X, which has none.
        shard_bytes: see `write_weights`.
        progress: see `Progress`.

    Returns:
        What was done.

    Raises:
        ValueError: if the source is damaged, of another architecture, has tensors missing, left
            over or of other shapes, or cannot be represented; before anything is written.
        OSError: if a file is not there, the destination exists, or the disk is full.
    """
    path, destination = Path(source), Path(destination)
    check_new(destination)
    if to not in ("flan-moe", "hf-switch", "hf-t5"):
        raise ValueError(f"to={to!r}: expected 'flan-moe', 'hf-switch' or 'hf-t5'")
    opened = open_as_flan_moe(path, config)
    if to == opened.layout:
        raise ValueError(f"{path}: is {to} already")
    if to == "flan-moe":
        with new_directory(destination) as directory:
            size = write_weights(
                directory, opened.targets, shard_bytes=shard_bytes, progress=progress
            )
            copied = copy_companions(path, directory)
            provenance = {"source": opened.layout, "config": dict(opened.theirs)}
            write_json(directory / PROVENANCE, provenance)
            write_config(opened.config, opened.targets, directory)
        count = len(opened.targets)
        return Conversion(opened.layout, to, count, size, tuple(copied), opened.notes)
    if opened.layout != "flan-moe":
        raise ValueError(f"{path}: is {opened.layout}; convert it to flan-moe first")
    kept = _kept_values(path, to)
    values = export_config(opened.config, to, kept, str(path / "config.json"))
    source_tensors = open_checkpoint(path)
    targets = export_targets(opened.config, source_tensors, to)
    values["dtype"] = _dtype_name(targets)
    values.pop("torch_dtype", None)
    with new_directory(destination) as directory:
        size = write_weights(directory, targets, shard_bytes=shard_bytes, progress=progress)
        copied = copy_companions(path, directory)
        write_json(directory / "config.json", values)
    notes = []
    if to == "hf-switch":
        notes.append(
            "transformers drops tokens over expert_capacity in evaluation too "
            f"({values.get('expert_capacity', 'its default, 64')} per row and expert); "
            "Flan-MoE drops none"
        )
    return Conversion("flan-moe", to, len(targets), size, tuple(copied), tuple(notes))


def open_as_flan_moe(path: Path, config: FlanMoEConfig | None = None) -> Opened:
    """Open a checkpoint of any layout as a Flan-MoE model, and check names and shapes.

    Args:
        path: see `convert`.
        config: for T5X, which has none; refused elsewhere.

    Raises:
        ValueError, OSError: see `convert`.
    """
    config_file = path / "config.json"
    if not path.is_dir() or not config_file.is_file():
        return _open_t5x(path, config)
    if config is not None:
        raise ValueError(f"{config_file}: has the configuration; expected none besides")
    values = read_json(config_file)
    model_type = values.get("model_type")
    if model_type == FlanMoEConfig.model_type:
        return _open_own(path)
    if model_type not in MODEL_TYPES:
        known = ", ".join(map(repr, (FlanMoEConfig.model_type, *MODEL_TYPES)))
        raise ValueError(f"{config_file}: model_type={model_type!r}: expected one of {known}")
    layout = MODEL_TYPES[model_type]
    config = import_config(values, str(config_file))
    source = open_checkpoint(path)
    notes = []
    if layout == "hf-switch":
        notes.append(
            f"expert_capacity={values.get('expert_capacity', 64)} per row has no counterpart: "
            "evaluation drops nothing, training has the capacity of the router preset 'switch'"
        )
    targets, extra = _import_hf(config, source, layout)
    return Opened(path, layout, config, targets, values, (*notes, *extra))


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
        ValueError: if tensors are missing, left over or of other shapes.
    """
    shapes = weight_shapes(config)
    _check_linked(shapes, links, source.origin)
    check_tensors(source, source_shapes(links, shapes), allowed=allowed)
    return assembled(links, shapes, source)


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
    _check_linked(shapes, links, f"{source.origin} to {layout}")
    check_tensors(source, shapes, allowed=_tied_head(config))
    theirs = source_shapes(links, shapes)
    return assembled([link.reversed() for link in links], theirs, source)


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
    targets, _ = _import_hf(config, StateSource(state, "the state dict"), layout)
    return {target.name: target.tensor() for target in targets}


def model_targets(model: FlanMoEForConditionalGeneration) -> list[Target]:
    """The weights of a model in memory."""
    shapes = weight_shapes(model.config)
    return assembled(_unchanged(shapes), shapes, StateSource(model.state_dict()))


def weight_shapes(config: FlanMoEConfig) -> dict[str, Shape]:
    """Shapes of the tensors in a Flan-MoE checkpoint; nothing is allocated."""
    with torch.device("meta"):
        model = FlanMoEForConditionalGeneration(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in _tied_head(config):
        del shapes[name]
    return shapes


def write_config(config: FlanMoEConfig, targets: list[Target], directory: Path) -> None:
    """Write the config.json that makes a directory with weights a checkpoint."""
    config.architectures = [FlanMoEForConditionalGeneration.__name__]
    config.dtype = _dtype_name(targets)
    config.save_pretrained(directory)


def _open_own(path: Path) -> Opened:
    try:
        config = FlanMoEConfig.from_pretrained(path, local_files_only=True)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path / 'config.json'}: {error}") from error
    source = open_checkpoint(path)
    shapes = weight_shapes(config)
    check_tensors(source, shapes, allowed=_tied_head(config))
    targets = assembled(_unchanged(shapes), shapes, source)
    return Opened(path, "flan-moe", config, targets, config.to_dict(), ())


def _unchanged(shapes: Mapping[str, Shape]) -> list[Link]:
    return [whole(name, name) for name in shapes]


def _open_t5x(path: Path, config: FlanMoEConfig | None) -> Opened:
    source = open_checkpoint(path)
    if not any(name.startswith(PREFIX) for name in source.tensors):
        raise ValueError(
            f"{path}: expected a directory with config.json, or a file of T5X arrays named "
            f"{PREFIX}...; found {some(sorted(source.tensors)) or 'no tensors'}"
        )
    if config is None:
        raise ValueError(f"{path}: T5X arrays come without a configuration; give one (--config)")
    others = frozenset(name for name in source.tensors if not name.startswith(PREFIX))
    notes = [f"left out {len(others)} arrays that are not under {PREFIX}"] if others else []
    targets = import_targets(config, source, t5x_links(config), others)
    return Opened(path, "t5x", config, targets, {}, tuple(notes))


def _import_hf(
    config: FlanMoEConfig, source: TensorSource, layout: HFFormat
) -> tuple[list[Target], list[str]]:
    links = hf_links(config, layout)
    names = ("shared.weight", *EMBEDDING_COPIES, *_tied_head(config))
    present = [name for name in names if name in source.tensors]
    if present and present[0] != "shared.weight":
        links[0] = Link(links[0].target, Region(present[0]))
    targets = import_targets(config, source, links, UNUSED | set(present[1:]))
    for copy in present[1:]:
        _check_copy(source, present[0], copy)
    unused = sorted(UNUSED & source.tensors.keys())
    return targets, [f"left out {name}, which nothing uses" for name in unused]


def _check_copy(source: TensorSource, name: str, copy: str) -> None:
    """Refuse a tied weight whose copies differ: which of them the model has used is unknown."""
    same = source.tensors[name] == source.tensors[copy] and all(
        torch.equal(one, other)
        for one, other in zip(row_parts(source, name), row_parts(source, copy), strict=True)
    )
    if not same:
        raise ValueError(f"{source.origin}: {copy} differs from {name}, to which it is tied")


def _check_linked(shapes: Mapping[str, Shape], links: list[Link], origin: str) -> None:
    unlinked = sorted(shapes.keys() - {link.target.name for link in links})
    if unlinked:
        raise ValueError(f"{origin}: no name there for {some(unlinked)}")


def _hf_names(model: FlanMoEForConditionalGeneration, layout: HFFormat) -> dict[str, Tensor]:
    targets = export_targets(model.config, StateSource(model.state_dict()), layout)
    return {target.name: target.tensor() for target in targets}


def _kept_values(path: Path, layout: HFFormat) -> dict[str, Any]:
    file = path / PROVENANCE
    provenance = read_json(file) if file.is_file() else {}
    kept = provenance.get("config") if provenance.get("source") == layout else {}
    if not isinstance(kept, dict):
        raise ValueError(f"{file}: config={kept!r}: expected a JSON object")
    return kept


def _tied_head(config: FlanMoEConfig) -> frozenset[str]:
    return frozenset({"lm_head.weight"}) if config.tie_word_embeddings else frozenset()


def _dtype_name(targets: list[Target]) -> str:
    """The dtype that most weights have."""
    sizes: dict[torch.dtype, int] = {}
    for target in targets:
        sizes[target.dtype] = sizes.get(target.dtype, 0) + target.num_bytes
    return str(max(sizes, key=sizes.__getitem__)).removeprefix("torch.")
