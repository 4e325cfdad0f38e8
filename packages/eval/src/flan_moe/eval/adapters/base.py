"""What the Hugging Face adapters share: settings, fingerprint, evaluation mode, token limits."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from flan_moe.eval.adapters.batching import token_budget_batches
from flan_moe.eval.adapters.fingerprint import model_fingerprint
from flan_moe.eval.requests import GenerateRequest

logger = logging.getLogger(__name__)

DEFAULT_MAX_TOKENS = 2048


class HFModel:
    """A Hugging Face model, its tokenizer and how to batch for it.

    Attributes:
        model: The model; its training flag is restored after each call.
        tokenizer: Its tokenizer.
        max_tokens: The length to which prompts are held.
        token_budget: Padded tokens per batch at most.
        max_rows: Rows per batch at most.
        end_of_option: Whether an option is scored with the end-of-sequence token behind it, so
            that "red" does not profit from being the beginning of "red car".
        eos_id: Id of the token that ends an answer.
        pad_id: Id of the padding; that of the end where the tokenizer has none.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        device: str | torch.device | None,
        max_tokens: int | None,
        token_budget: int,
        max_rows: int,
        end_of_option: bool,
    ) -> None:
        """Check the settings; ``device`` None leaves the model where it is."""
        self.model = model if device is None else model.to(device)
        self.tokenizer = tokenizer
        positions = getattr(model.config, "max_position_embeddings", None)
        self.max_tokens = max_tokens if max_tokens is not None else positions or DEFAULT_MAX_TOKENS
        if positions is not None and self.max_tokens > positions:
            raise ValueError(
                f"longest input: {self.max_tokens} tokens; the model has {positions} positions"
            )
        self.token_budget = token_budget
        self.max_rows = max_rows
        for key in ("max_tokens", "token_budget", "max_rows"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: {getattr(self, key)}; expected at least 1")
        self.end_of_option = end_of_option
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

    def count_tokens(self, text: str) -> int:
        """Number of tokens of ``text``, special tokens left out."""
        return len(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _settings(self) -> dict[str, Any]:
        return {
            "adapter": type(self).__name__,
            "max_tokens": self.max_tokens,
            "end_of_option": self.end_of_option,
        }

    def _batches(
        self, lengths: Sequence[int], copies: Sequence[int] | None = None
    ) -> list[list[int]]:
        return token_budget_batches(
            lengths, token_budget=self.token_budget, max_rows=self.max_rows, copies=copies
        )

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

    def _generate(self, ids: torch.Tensor, mask: torch.Tensor, **settings: Any) -> torch.Tensor:
        """Greedy continuation of (rows, L) prompts, as ``model.generate`` returns it.

        Nothing is taken from the model's own generation settings: transformers fills what a given
        configuration leaves at its default from them, and a generation_config.json that samples,
        searches or penalises repetition would do so here too, without a trace in the fingerprint.
        """
        greedy = GenerationConfig(
            do_sample=False,
            num_beams=1,
            pad_token_id=self.pad_id,
            eos_token_id=self.eos_id,
            **settings,
        )
        own, self.model.generation_config = self.model.generation_config, greedy
        try:
            return self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=greedy,
                logits_processor=LogitsProcessorList([_RefuseNaN()]),
            )
        finally:
            self.model.generation_config = own

    def _cut(self, prompts: Sequence[list[int]], limits: Sequence[int]) -> list[list[int]]:
        """The end of every prompt that is over its limit, behind its first token if that is BOS."""
        cut = []
        for ids, limit in zip(prompts, limits, strict=True):
            if len(ids) <= limit:
                cut.append(ids)
            elif limit > 1 and ids[0] == self.tokenizer.bos_token_id:
                cut.append([ids[0], *ids[len(ids) - limit + 1 :]])
            else:
                cut.append(ids[len(ids) - limit :])
        shorter = sum(len(a) < len(b) for a, b in zip(cut, prompts, strict=True))
        if shorter:
            logger.warning(
                "%d of %d prompts lost their beginning: the limit is %d tokens",
                *(shorter, len(prompts), max(limits)),
            )
        return cut

    def _decode(self, ids: torch.Tensor, requests: Sequence[GenerateRequest]) -> list[str]:
        """Generated ids (rows, L) as texts, each up to its first stop string."""
        texts = self.tokenizer.batch_decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return [
            cut_at_stop(text, request.stop) for text, request in zip(texts, requests, strict=True)
        ]


class _RefuseNaN(LogitsProcessor):
    """Stops a model whose arithmetic has failed: argmax would take NaN for the likeliest token."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if bool(scores.isnan().any()):
            raise ValueError(
                "the model's logits hold NaN; expected numbers (are its weights damaged, or is its "
                "dtype too narrow?)"
            )
        return scores


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """``text`` up to the first of the stop strings."""
    ends = [text.find(string) for string in stop]
    return text[: min((end for end in ends if end >= 0), default=len(text))]


def _check_vocabulary(model: Any, tokenizer: Any) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens and the model {rows} embeddings; they do "
            "not belong together"
        )
