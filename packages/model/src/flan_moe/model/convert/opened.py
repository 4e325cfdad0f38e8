"""Checkpoints of any layout, opened as Flan-MoE models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flan_moe.model.config import FlanMoEConfig
from flan_moe.model.convert.assemble import Target, assembled
from flan_moe.model.convert.checkpoint import open_checkpoint, read_json
from flan_moe.model.convert.hf_configs import import_config, layout_of
from flan_moe.model.convert.source import check_tensors, some
from flan_moe.model.convert.t5x_names import PREFIX, t5x_links
from flan_moe.model.convert.weights import (
    import_hf,
    import_targets,
    tied_head,
    unchanged,
    weight_shapes,
)

Layout = Literal["flan-moe", "hf-switch", "hf-t5", "t5x"]


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
    if values.get("model_type") == FlanMoEConfig.model_type:
        return _open_own(path)
    layout = layout_of(values, str(config_file))
    config = import_config(values, str(config_file))
    source = open_checkpoint(path)
    notes = []
    if layout == "hf-switch":
        notes.append(
            f"expert_capacity={values.get('expert_capacity', 64)} per row has no counterpart: "
            "evaluation drops nothing, training has the capacity of the router preset 'switch'"
        )
    targets, extra = import_hf(config, source, layout)
    return Opened(path, layout, config, targets, values, (*notes, *extra))


def _open_own(path: Path) -> Opened:
    try:
        config = FlanMoEConfig.from_pretrained(path, local_files_only=True)
    except Exception as error:  # transformers raises many types for values it did not expect
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"{path / 'config.json'}: {reason}") from error
    source = open_checkpoint(path)
    shapes = weight_shapes(config)
    check_tensors(source, shapes, allowed=tied_head(config))
    targets = assembled(unchanged(shapes), shapes, source)
    return Opened(path, "flan-moe", config, targets, config.to_dict(), ())


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
