"""From a path to a language model."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from flan_moe.eval.adapters.causal import HFCausalModel
from flan_moe.eval.adapters.seq2seq import HFSeq2SeqModel

ENTRY_POINT_GROUP = "flan_moe.register_auto"
TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json", "vocab.txt")
DTYPES = ("float32", "bfloat16", "float16")


def load_language_model(
    path: str | Path,
    *,
    tokenizer: str | Path | None = None,
    device: str | None = None,
    dtype: str = "float32",
    max_tokens: int | None = None,
    token_budget: int | None = None,
) -> HFSeq2SeqModel | HFCausalModel:
    """Load a model and its tokenizer with transformers' Auto classes, and wrap them.

    Installed packages may teach the Auto classes further models through the entry-point group
    ``flan_moe.register_auto``, whose functions are called first. No code from a checkpoint is run.

    Args:
        path: A folder written by ``save_pretrained``, or a name on the Hugging Face hub.
        tokenizer: The same for the tokenizer; None if it is with the model.
        device: Such as "cpu" or "cuda:0"; None for "cuda" where there is one, else "cpu".
        dtype: Type of the weights in memory.
        max_tokens: Longest prompt of an encoder-decoder, prompt and answer of a causal model.
        token_budget: Padded tokens per batch.

    Raises:
        FileNotFoundError: ``path`` looks like a path and is not there.
        ValueError: A setting is impossible, the device cannot be used, or the checkpoint or its
            tokenizer cannot be loaded whole.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: {dtype!r}; expected one of {DTYPES}")
    for key, value in (("max_tokens", max_tokens), ("token_budget", token_budget)):
        if value is not None and value < 1:
            raise ValueError(f"{key}: {value}; expected at least 1")
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    _require_device(place)
    for plugin in entry_points(group=ENTRY_POINT_GROUP):
        plugin.load()()
    source = _source(path)
    tokenizer_source = _source(tokenizer or path)
    _require_tokenizer_files(tokenizer_source)
    loaded_tokenizer = _load("tokenizer", AutoTokenizer, tokenizer_source)
    config = _load("configuration", AutoConfig, source)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model, info = _load(
        *("model", auto, source),
        config=config,
        dtype=getattr(torch, dtype),
        output_loading_info=True,
    )
    if info["missing_keys"]:
        # transformers would go on with random weights in their place.
        missing = sorted(info["missing_keys"])
        raise ValueError(f"{source}: {len(missing)} weights are missing, the first is {missing[0]}")
    if info["unexpected_keys"]:
        # It would go on without them, as a model that nobody trained.
        unused = sorted(info["unexpected_keys"])
        raise ValueError(
            f"{source}: {len(unused)} weights have no place in the model that config.json "
            f"describes, the first is {unused[0]}"
        )
    if config.is_encoder_decoder:
        return HFSeq2SeqModel(
            *(model, loaded_tokenizer),
            device=place,
            max_input_tokens=max_tokens,
            token_budget=token_budget,
        )
    return HFCausalModel(
        *(model, loaded_tokenizer),
        device=place,
        max_total_tokens=max_tokens,
        token_budget=token_budget,
    )


def _source(path: str | Path) -> str:
    name = os.fspath(path)
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if isinstance(path, Path) or looks_like_path:
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; expected a saved model")
        return str(folder)
    return name


def _require_device(name: str) -> None:
    try:
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device: {name!r}; expected one that torch can use here, such as 'cpu' ({reason})"
        ) from None


def _require_tokenizer_files(source: str) -> None:
    # Without them transformers 5 makes up a tokenizer of special tokens only for known models.
    folder = Path(source)
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ValueError(
            f"{source}: no tokenizer there; expected one of {', '.join(TOKENIZER_FILES)}, or the "
            "tokenizer given apart"
        )


def _load(what: str, auto: Any, source: str, **settings: Any) -> Any:
    try:
        return auto.from_pretrained(source, trust_remote_code=False, **settings)
    except Exception as error:  # transformers, safetensors and the hub raise many unrelated types
        raise ValueError(
            f"{source}: cannot load a {what}: {type(error).__name__}: {error}"
        ) from error
