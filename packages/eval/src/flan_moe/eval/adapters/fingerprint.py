"""A digest that says which model gave an answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch


def model_fingerprint(model: Any, tokenizer: Any, settings: Mapping[str, Any]) -> str:
    """SHA-256 over everything that decides a model's greedy answers.

    Args:
        model: Its parameters and buffers (names, types, shapes, bytes) and its configuration.
        tokenizer: Its vocabulary and, for a fast tokenizer, its whole definition.
        settings: Adapter settings that change answers.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    configuration = model.config.to_dict()
    # These name where the weights came from and who saved them, not what they compute.
    for key in ("_name_or_path", "transformers_version", "architectures", "_commit_hash"):
        configuration.pop(key, None)
    digest.update(_canonical({"config": configuration, "settings": dict(settings)}))
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(_canonical([name, str(tensor.dtype), list(tensor.shape)]))
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        definition = json.loads(backend.to_str())
        # The last call's padding and truncation are kept there; they are not the tokenizer.
        definition.pop("padding", None)
        definition.pop("truncation", None)
        digest.update(_canonical(definition))
    else:
        digest.update(_canonical(tokenizer.get_vocab()))
    digest.update(_canonical({key: str(v) for key, v in tokenizer.special_tokens_map.items()}))
    return digest.hexdigest()


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()
