"""Model and tokenizer from a local directory, checked.

Nothing is looked for on a network and no code of a checkpoint is run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from flan_moe.model.modeling import FlanMoEForConditionalGeneration


def check_device(name: str) -> None:
    """Refuse a device that torch cannot use here.

    Raises:
        ValueError: naming it.
    """
    import torch

    try:
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"--device {name!r}: expected one that torch can use here, such as 'cpu' ({reason})"
        ) from None


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint.

    Raises:
        ValueError: naming the directory and what went wrong.
    """
    from transformers import AutoTokenizer

    from flan_moe.model.register import register_auto_classes

    register_auto_classes()  # AutoTokenizer looks at config.json, and warns of unknown models
    return _load(path, "tokenizer", AutoTokenizer, trust_remote_code=False)


def load_model(
    path: str, device: str, tokenizer: PreTrainedTokenizerBase
) -> FlanMoEForConditionalGeneration:
    """The model of a checkpoint, in evaluation mode on a device.

    Raises:
        ValueError: naming the directory: what cannot be read, weights that are missing, have
            no place or are not finite, a vocabulary smaller than the tokenizer's.
    """
    from flan_moe.model.modeling import FlanMoEForConditionalGeneration

    model, info = _load(path, "model", FlanMoEForConditionalGeneration, output_loading_info=True)
    # transformers would go on with random weights, or without those that it has no place for.
    for key, problem in (
        ("missing_keys", "weights are missing"),
        ("unexpected_keys", "weights have no place in the model that config.json describes"),
    ):
        if info[key]:
            raise ValueError(f"{path}: {len(info[key])} {problem}, the first is {min(info[key])}")
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():  # it would generate nothing but padding
            raise ValueError(f"{path}: {name} holds NaN or infinity; expected finite weights")
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has {len(tokenizer)} tokens, the model a vocabulary of "
            f"{model.config.vocab_size}"
        )
    return model.eval().to(device)


def _load(path: str, what: str, loader: Any, **settings: Any) -> Any:
    try:
        return loader.from_pretrained(path, local_files_only=True, **settings)
    except Exception as error:  # transformers and safetensors raise many unrelated types
        raise ValueError(
            f"{path}: cannot load a {what}: {type(error).__name__}: {error}"
        ) from error
