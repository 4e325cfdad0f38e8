"""From the recipe's model section to a configuration and a network."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flan_moe.train.conform import suggestion
from flan_moe.train.recipe import LoadedRecipe

if TYPE_CHECKING:
    from flan_moe.model import FlanMoEConfig, FlanMoEForConditionalGeneration

VOCABULARY_MULTIPLE = 64
"""A fresh model's vocabulary is the tokenizer's, rounded up to this (even matrix shapes)."""

ROUTERS = ("encoder_router", "decoder_router")


def build_config(loaded: LoadedRecipe, tokenizer_size: int) -> FlanMoEConfig:
    """The model configuration that a recipe describes.

    Overrides of a router are merged into the preset's router, so that
    ``encoder_router: {num_experts: 16}`` changes one option; ``null`` makes the stack dense. A
    router of another name starts from its own options and keeps the number of experts only.

    Args:
        loaded: The recipe.
        tokenizer_size: Entries of the data's tokenizer.

    Returns:
        The configuration; the dense twin's if the recipe asks for that.

    Raises:
        RecipeError: If the preset or path is unknown, an override is refused by the model, or the
            vocabulary does not fit the tokenizer.
    """
    from flan_moe.model import FlanMoEConfig, dense_twin

    section = loaded.recipe.model
    _refuse_foreign_keys(loaded)
    base = _base_config(loaded)
    values = base.to_dict()
    if section.preset is not None and "vocab_size" not in section.overrides:
        values["vocab_size"] = -(-tokenizer_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    for key, value in section.overrides.items():
        if key in ROUTERS and isinstance(value, Mapping) and isinstance(values.get(key), Mapping):
            values[key] = _merged_router(values[key], value)
        else:
            values[key] = value
    try:
        config = FlanMoEConfig.from_dict(values)
        config = dense_twin(config) if section.dense_twin else config
    except (TypeError, ValueError) as error:
        raise loaded.error(_blamed_key(section.overrides, str(error)), str(error)) from None
    if section.path is not None and config.to_diff_dict() != base.to_diff_dict():
        _refuse_reshaping(loaded, base, config)
    if config.vocab_size < tokenizer_size:
        key = "model.overrides.vocab_size" if "vocab_size" in section.overrides else "model"
        raise loaded.error(
            key,
            f"expected a vocabulary of at least {tokenizer_size} for the tokenizer of "
            f"{loaded.recipe.data.path}, got {config.vocab_size}",
        )
    return config


def build_network(loaded: LoadedRecipe, config: FlanMoEConfig) -> FlanMoEForConditionalGeneration:
    """The network to train: freshly initialised, or with the weights at ``model.path``.

    A fresh network's weights are a function of the configuration and the recipe's seed.
    """
    import torch

    from flan_moe.model import FlanMoEForConditionalGeneration

    section = loaded.recipe.model
    if section.path is not None:
        return _load_network(loaded, config)
    with torch.random.fork_rng():
        torch.manual_seed(loaded.recipe.seed)
        return FlanMoEForConditionalGeneration(config)


def _merged_router(router: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    if override.get("name", router["name"]) != router["name"]:
        return {"num_experts": router["num_experts"], **override}
    return {**router, **override}


def _load_network(loaded: LoadedRecipe, config: FlanMoEConfig) -> FlanMoEForConditionalGeneration:
    """The network at ``model.path``, with every weight from there."""
    from safetensors import SafetensorError

    from flan_moe.model import FlanMoEForConditionalGeneration

    path = loaded.recipe.model.path
    try:
        network, info = FlanMoEForConditionalGeneration.from_pretrained(
            path, config=config, use_safetensors=True, output_loading_info=True
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise loaded.error("model.path", f"{path}: weights cannot be loaded: {error}") from None
    if info["missing_keys"]:
        # transformers would make them up, with a warning.
        missing = sorted(info["missing_keys"])
        raise loaded.error(
            "model.path", f"{path}: {len(missing)} weights are missing, such as {missing[0]}"
        )
    return network


def _refuse_foreign_keys(loaded: LoadedRecipe) -> None:
    """Overrides are options of the model; those of transformers say nothing about training."""
    from flan_moe.model import FlanMoEConfig

    known = [
        name
        for name, parameter in inspect.signature(FlanMoEConfig.__init__).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    for key in loaded.recipe.model.overrides:
        if key not in known:
            raise loaded.error(
                f"model.overrides.{key}", f"unknown option; {suggestion(key, known)}"
            )


def _base_config(loaded: LoadedRecipe) -> FlanMoEConfig:
    from flan_moe.model import FlanMoEConfig, flan_moe_config

    section = loaded.recipe.model
    if section.preset is not None:
        try:
            return flan_moe_config(section.preset)
        except (KeyError, ValueError) as error:
            raise loaded.error("model.preset", str(error.args[0])) from None
    folder = Path(section.path)
    if not (folder / "config.json").is_file():
        raise loaded.error(
            "model.path", f"expected a save_pretrained folder, {folder} has no config.json"
        )
    try:
        return FlanMoEConfig.from_pretrained(folder)
    except (OSError, TypeError, ValueError) as error:
        raise loaded.error("model.path", f"{folder / 'config.json'}: {error}") from None


def _refuse_reshaping(loaded: LoadedRecipe, base: FlanMoEConfig, config: FlanMoEConfig) -> None:
    """Overrides of a trained model may change how it trains, not the shapes of its weights."""
    from flan_moe.model import count_parameters

    if count_parameters(base) != count_parameters(config):
        raise loaded.error(
            "model.overrides",
            f"expected only options that leave the weights of {loaded.recipe.model.path} in "
            f"shape, got {loaded.recipe.model.overrides!r}",
        )


def _blamed_key(overrides: Mapping[str, Any], message: str) -> str:
    """The override that a refusal of the whole configuration names, as a recipe key."""
    blamed = [path for path in _leaves(overrides) if path[-1] in message]
    path = max(blamed, key=lambda p: (len(p), len(p[-1])), default=())
    return ".".join(("model", "overrides", *path))


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from ((key, *path) for path in _leaves(value))
        yield (key,)
