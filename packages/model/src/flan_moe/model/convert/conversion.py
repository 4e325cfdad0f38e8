"""Convert checkpoints of transformers and T5X to Flan-MoE directories and back."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flan_moe.model.config import FlanMoEConfig
from flan_moe.model.convert.assemble import Target
from flan_moe.model.convert.checkpoint import open_checkpoint, read_json
from flan_moe.model.convert.hf_configs import export_config
from flan_moe.model.convert.hf_names import HFFormat
from flan_moe.model.convert.opened import Layout, open_as_flan_moe
from flan_moe.model.convert.output import (
    DEFAULT_SHARD_BYTES,
    Progress,
    check_new,
    copy_companions,
    new_directory,
    write_json,
    write_weights,
)
from flan_moe.model.convert.weights import export_targets
from flan_moe.model.modeling import FlanMoEForConditionalGeneration

PROVENANCE = "conversion.json"
"""File of an imported checkpoint with the configuration it had: what ours cannot say is in it."""


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


def write_config(config: FlanMoEConfig, targets: list[Target], directory: Path) -> None:
    """Write the config.json that makes a directory with weights a checkpoint."""
    config.architectures = [FlanMoEForConditionalGeneration.__name__]
    config.dtype = _dtype_name(targets)
    config.save_pretrained(directory)


def _kept_values(path: Path, layout: HFFormat) -> dict[str, Any]:
    file = path / PROVENANCE
    provenance = read_json(file) if file.is_file() else {}
    kept = provenance.get("config") if provenance.get("source") == layout else {}
    if not isinstance(kept, dict):
        raise ValueError(f"{file}: config={kept!r}: expected a JSON object")
    return kept


def _dtype_name(targets: list[Target]) -> str:
    """The dtype that most weights have."""
    sizes: dict[torch.dtype, int] = {}
    for target in targets:
        sizes[target.dtype] = sizes.get(target.dtype, 0) + target.num_bytes
    return str(max(sizes, key=sizes.__getitem__)).removeprefix("torch.")
