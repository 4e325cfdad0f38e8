"""A checkpoint with a head of its own must not be loaded into a model whose head is the embedding.

Shape suffixes: V vocabulary, D model width.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open

HEAD, EMBEDDING = "lm_head.weight", "shared.weight"
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


def refuse_lost_head(
    checkpoint: str | Path,
    *,
    subfolder: str = "",
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> None:
    """Raise if a checkpoint, about to be loaded with tied embeddings, has a head that differs.

    transformers 4 ties whatever was read, and the head is gone without a word; transformers 5
    leaves the weights apart and says so in a log, but the model then scales the hidden state as
    if they were tied. Weights in other formats than safetensors are not looked at.

    Args:
        checkpoint: a directory, or the name of a repository in the local cache of the Hub.
        subfolder: of either.
        revision: of a repository.
        cache_dir: of repositories.

    Raises:
        ValueError: if the head is there and is not the embedding.
    """

    def find(name: str) -> Path | None:
        if Path(checkpoint).is_dir():
            path = Path(checkpoint) / subfolder / name
            return path if path.is_file() else None
        from huggingface_hub import try_to_load_from_cache

        name = f"{subfolder}/{name}" if subfolder else name
        found = try_to_load_from_cache(
            str(checkpoint), name, cache_dir=cache_dir, revision=revision
        )
        return Path(found) if isinstance(found, str) else None

    index = find(_INDEX)
    if index is not None and find(_SINGLE) is None:
        files = json.loads(index.read_text())["weight_map"]
    else:
        files = dict.fromkeys((HEAD, EMBEDDING), _SINGLE)
    weights_VD = []
    for name in (HEAD, EMBEDDING):
        path = find(files[name]) if name in files else None
        if path is None:
            return
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            if name not in names:
                return
            weights_VD.append(file.get_tensor(name))
    if not torch.equal(*weights_VD):
        raise ValueError(
            f"tie_word_embeddings=True, but {checkpoint} holds a {HEAD} that differs from "
            f"{EMBEDDING}: the head would be lost; expected tie_word_embeddings=False"
        )
