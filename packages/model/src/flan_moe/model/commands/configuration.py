"""A configuration that the user names: a preset, or the one of a checkpoint."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from flan_moe.model.commands.directory import check_directory

if TYPE_CHECKING:
    from flan_moe.model.config import FlanMoEConfig


def find_config(model: str) -> FlanMoEConfig:
    """The configuration of a preset or of a local directory.

    Raises:
        ValueError: if it is neither.
    """
    from flan_moe.model.presets import PRESETS, flan_moe_config

    if model in PRESETS:
        return flan_moe_config(model)
    check_directory(model, f"a preset ({', '.join(PRESETS)}) or a directory with config.json")
    return load_config(model)


def load_config(path: str) -> FlanMoEConfig:
    """The configuration of a local directory.

    Raises:
        ValueError: naming the file and what is wrong in it.
    """
    from flan_moe.model.config import FlanMoEConfig

    try:
        return FlanMoEConfig.from_pretrained(path, local_files_only=True)
    except Exception as error:  # transformers raises many types for values that it did not expect
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"{os.path.join(path, 'config.json')}: {reason}") from error
