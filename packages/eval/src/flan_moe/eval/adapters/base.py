"""What the Hugging Face adapters share: settings, fingerprint, evaluation mode, token limits."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from flan_moe.eval.adapters.fingerprint import model_fingerprint

logger = logging.getLogger(__name__)

DEFAULT_MAX_TOKENS = 2048
CPU_TOKEN_BUDGET = 4096
ACCELERATOR_TOKEN_BUDGET = 65536


class HFModel:
    """A Hugging Face model, its tokenizer and how to batch for it.

    Attributes:
        model: The model; its training flag is restored after each call.
        tokenizer: Its tokenizer.
        max_input_tokens: Longest prompt in tokens; longer ones lose their beginning, with a
            warning.
        token_budget: Padded tokens per batch at most.
        max_rows: Rows per batch at most.
        end_of_option: Whether an option is scored with the end-of-sequence token behind it, so
            that "red" does not profit from being the beginning of "red car".
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        device: str | torch.device | None,
        max_input_tokens: int | None,
        token_budget: int | None,
        max_rows: int,
        end_of_option: bool,
    ) -> None:
        """Check the settings; ``device`` None leaves the model where it is."""
        if device is not None:
            model = model.to(device)
        self.model = model
        self.tokenizer = tokenizer
        self.max_rows = _positive("max_rows", max_rows)
        self.end_of_option = end_of_option
        bound = getattr(model.config, "max_position_embeddings", None)
        self.max_input_tokens = _positive(
            "max_input_tokens", max_input_tokens or bound or DEFAULT_MAX_TOKENS
        )
        if bound is not None and self.max_input_tokens > bound:
            raise ValueError(
                f"max_input_tokens: {self.max_input_tokens}; the model has {bound} positions"
            )
        default = CPU_TOKEN_BUDGET if self.device.type == "cpu" else ACCELERATOR_TOKEN_BUDGET
        self.token_budget = _positive("token_budget", token_budget or default)
        _check_vocabulary(model, tokenizer)
        self.eos_id = tokenizer.eos_token_id
        if self.eos_id is None:
            raise ValueError(
                f"tokenizer {type(tokenizer).__name__} has no eos_token; answers could not end"
            )
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos_id

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def fingerprint(self) -> str:
        """Digest of weights, configuration, tokenizer and the settings that change answers.

        Computed anew each time: the weights of a model in training change.
        """
        return model_fingerprint(self.model, self.tokenizer, self._settings())

    def _settings(self) -> dict[str, Any]:
        return {
            "adapter": type(self).__name__,
            "max_input_tokens": self.max_input_tokens,
            "end_of_option": self.end_of_option,
        }

    def count_tokens(self, text: str) -> int:
        """Number of tokens of ``text``, special tokens left out."""
        return len(self.tokenizer(text, add_special_tokens=False).input_ids)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """No gradients, no dropout; leaves a model in training as it was."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.model.train(was_training)

    def _cut(self, ids: list[int], limit: int) -> list[int]:
        """The last ``limit`` tokens, behind the first one if that begins every sequence."""
        if len(ids) <= limit:
            return ids
        logger.warning("a prompt of %d tokens lost its beginning: the limit is %d", len(ids), limit)
        keep_first = ids[0] == self.tokenizer.bos_token_id
        return ids[:1] + ids[len(ids) - limit + 1 :] if keep_first else ids[len(ids) - limit :]


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """``text`` up to the first of the stop strings."""
    ends = [text.find(string) for string in stop]
    return text[: min((end for end in ends if end >= 0), default=len(text))]


def _positive(key: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{key}: {value}; expected at least 1")
    return value


def _check_vocabulary(model: Any, tokenizer: Any) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens and the model {rows} embeddings; they do "
            "not belong together"
        )
