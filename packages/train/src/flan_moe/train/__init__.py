"""Instruction tuning of Flan-MoE models with Composer.

Names are imported when they are first used, so that importing this package (as the command line
does for ``--help``) imports neither torch nor Composer.
"""

from __future__ import annotations

import importlib
from typing import Any

from flan_moe.train.__about__ import __version__

_HOME = {
    "CheckpointWriter": "callbacks.checkpoint_writer",
    "ExpertAdafactor": "adafactor",
    "InstructionTuning": "composer_model",
    "LoadedRecipe": "recipe",
    "Plan": "preflight",
    "Quickstart": "quickstart",
    "Recipe": "recipe_schema",
    "RecipeError": "recipe",
    "RouterMonitor": "callbacks.router_monitor",
    "RowLengths": "row_lengths",
    "RunFolder": "run_folder",
    "RunFolderError": "run_folder",
    "Settings": "quickstart",
    "StepSeed": "callbacks.step_seed",
    "TrainingInterruptedError": "interruption",
    "build_optimizer": "optimizers",
    "build_schedule": "schedules",
    "build_trainer": "trainer",
    "check_recipe": "preflight",
    "data_spec": "batches",
    "export_run": "export",
    "load_recipe": "recipe",
    "read_metrics": "callbacks.metrics_log",
    "read_recipe": "recipe",
    "shipped_recipes": "recipe",
    "train": "trainer",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
