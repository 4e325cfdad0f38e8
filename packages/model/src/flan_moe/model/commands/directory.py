"""Directories with a Flan-MoE checkpoint."""

from __future__ import annotations

import json
from pathlib import Path


def check_directory(model: str, expected: str) -> None:
    """Refuse what is not a local Flan-MoE checkpoint, before anything looks for it on a network.

    Args:
        model: what the user gave.
        expected: what would have been right, for the message.

    Raises:
        ValueError: naming the directory and what was expected.
    """
    path = Path(model) / "config.json"
    if not path.is_file():
        raise ValueError(f"{model!r}: expected {expected}")
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, RecursionError, AttributeError) as error:
        raise ValueError(f"{path}: expected a JSON object: {error}") from error
    if found != "flan_moe":
        raise ValueError(f"{path}: model_type={found!r}: expected 'flan_moe'")
