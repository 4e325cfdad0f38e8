"""Everything that can be refused before anything long starts."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flan_moe.train.data_folder import DataFolder
from flan_moe.train.networks import build_config
from flan_moe.train.recipe import LoadedRecipe
from flan_moe.train.recipe_schema import amount

if TYPE_CHECKING:
    from flan_moe.model import FlanMoEConfig


BYTES_PER_WEIGHT = 4
"""Weights are kept in single precision, whatever the arithmetic."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe that has been found possible.

    Attributes:
        loaded: The recipe.
        data: The data folder it trains on.
        config: The model it trains.
    """

    loaded: LoadedRecipe
    data: DataFolder
    config: FlanMoEConfig


def check_recipe(loaded: LoadedRecipe) -> Plan:
    """Check a recipe against the model, the data on disk and this machine.

    Nothing is written and no weights are allocated.

    Raises:
        RecipeError: Naming the key, the value, what was expected and where it was written.
    """
    data = DataFolder.open(loaded)
    config = build_config(loaded, data.tokenizer_size)
    _check_memory(loaded, config)
    _check_tokenizer(loaded, data)
    _check_special_tokens(loaded, data, config)
    _check_batch(loaded)
    _check_device(loaded)
    _check_loggers(loaded)
    return Plan(loaded=loaded, data=data, config=config)


def _check_memory(loaded: LoadedRecipe, config: FlanMoEConfig) -> None:
    """The weights alone must fit the machine; a model is always made in its main memory."""
    from flan_moe.model import count_parameters

    parameters = count_parameters(config).total
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if BYTES_PER_WEIGHT * parameters > memory:
        raise loaded.error(
            "model",
            f"expected weights that fit the {memory / 2**30:,.0f} GiB of this machine, got "
            f"{parameters:,} parameters ({BYTES_PER_WEIGHT * parameters / 2**30:,.0f} GiB)",
        )


def _check_tokenizer(loaded: LoadedRecipe, data: DataFolder) -> None:
    """Weights that were exported with a tokenizer must be tuned with the same one."""
    from flan_moe.data import tokenizer_fingerprint

    start = loaded.recipe.model.path
    if start is None or not (Path(start) / "tokenizer.json").is_file():
        return
    theirs, ours = tokenizer_fingerprint(start), data.manifest.tokenizer_sha256
    if theirs != ours:
        raise loaded.error(
            "model.path",
            f"expected weights that go with the tokenizer of {data.path} (SHA-256 {ours[:12]}), "
            f"got {start} with another one ({theirs[:12]})",
        )


def _check_special_tokens(loaded: LoadedRecipe, data: DataFolder, config: FlanMoEConfig) -> None:
    for name in ("pad_token_id", "eos_token_id"):
        ours, theirs = getattr(config, name), getattr(data.tokenizer, name)
        if ours != theirs:
            raise loaded.error(
                "model", f"expected {name} {theirs} as in {data.path / 'tokenizer'}, got {ours}"
            )


def _check_batch(loaded: LoadedRecipe) -> None:
    from composer.utils import dist

    recipe = loaded.recipe
    batch, rows, ranks = (
        recipe.data.batch_size,
        recipe.training.microbatch_rows,
        dist.get_world_size(),
    )
    if rows is not None and rows > batch:
        raise loaded.error(
            "training.microbatch_rows",
            f"expected at most data.batch_size ({batch}), got {rows}",
        )
    if batch % ranks:
        raise loaded.error(
            "data.batch_size", f"expected a multiple of the {ranks} ranks, got {batch}"
        )
    epoch = recipe.data.epoch_size
    if epoch is not None and epoch < batch:
        raise loaded.error(
            "data.epoch_size", f"expected at least data.batch_size ({batch}), got {epoch}"
        )
    every, duration = recipe.checkpoint.interval, recipe.training.duration
    if amount(every)[1] == amount(duration)[1] and amount(every)[0] > amount(duration)[0]:
        raise loaded.error(
            "checkpoint.interval",
            f"expected at most training.duration ({duration}), got {every!r}",
        )


def _check_device(loaded: LoadedRecipe) -> None:
    import torch

    training = loaded.recipe.training
    has_gpu = torch.cuda.is_available()
    if training.device == "gpu" and not has_gpu:
        raise loaded.error("training.device", "expected 'cpu' or 'auto' on a machine without a GPU")
    on_gpu = has_gpu and training.device != "cpu"
    if training.precision != "fp32" and not on_gpu:
        raise loaded.error(
            "training.precision", f"expected 'fp32' on a CPU, got {training.precision!r}"
        )


def _check_loggers(loaded: LoadedRecipe) -> None:
    if loaded.recipe.logging.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise loaded.error(
            "logging.tensorboard", "expected false, or the tensorboard package to be installed"
        )
