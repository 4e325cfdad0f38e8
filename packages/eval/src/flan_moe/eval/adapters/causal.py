"""Hugging Face decoder-only models.

Shape suffixes: N rows, L positions, K scored tokens of all rows, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from flan_moe.eval.adapters.base import HFModel
from flan_moe.eval.adapters.batching import pad
from flan_moe.eval.requests import GenerateRequest, Loglikelihood, LoglikelihoodRequest, Request

CPU_TOKEN_BUDGET = 4096
ACCELERATOR_TOKEN_BUDGET = 16384


class HFCausalModel(HFModel):
    """A causal language model: GPT-2, Llama and their like.

    The answer follows the prompt behind ``answer_separator``. Prompt and option are tokenized
    together, because tokens may span the place where they meet; the tokens of a prompt that are the
    same for all of its options are the condition, and everything after them is scored, for every
    option from the same place.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        device: str | torch.device | None = None,
        max_total_tokens: int | None = None,
        token_budget: int | None = None,
        max_rows: int = 128,
        end_of_option: bool = False,
        answer_separator: str = "\n",
    ) -> None:
        """Wrap a model.

        Args:
            model: A decoder with a language-model head.
            tokenizer: Its tokenizer.
            device: Moves the model there; None leaves it where it is.
            max_total_tokens: Longest prompt and answer together; longer prompts lose their
                beginning, with a warning. None for the model's positions, or 2048.
            token_budget: Padded tokens per batch; None for 4,096 on a CPU and 16,384 elsewhere.
            max_rows: Rows per batch at most.
            end_of_option: Score an option together with the end of the text, which a model that
                was not tuned to stop there finds unlikely after any option.
            answer_separator: What stands between prompt and answer, as between an exemplar's
                question and its answer.

        Raises:
            ValueError: A setting is out of range, or model and tokenizer do not fit together.
        """
        if getattr(model.config, "is_encoder_decoder", False):
            raise ValueError(f"{type(model).__name__} is an encoder-decoder; see HFSeq2SeqModel")
        on_cpu = torch.device(device or model.device).type == "cpu"
        default_budget = CPU_TOKEN_BUDGET if on_cpu else ACCELERATOR_TOKEN_BUDGET
        super().__init__(
            model,
            tokenizer,
            device=device,
            max_tokens=max_total_tokens,
            token_budget=default_budget if token_budget is None else token_budget,
            max_rows=max_rows,
            end_of_option=end_of_option,
        )
        self.answer_separator = answer_separator
        # With it a model computes logits only where they are read.
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "answer_separator": self.answer_separator}

    def excess_tokens(self, request: Request) -> int:
        """How many tokens prompt and answer together are over ``max_total_tokens``."""
        if isinstance(request, GenerateRequest):
            prompt = self._encode(request.prompt + self.answer_separator)
            return len(prompt) + request.max_new_tokens - self.max_tokens
        context, options = self._split(request)
        return len(context) + max(len(ids) for ids in options) - self.max_tokens

    def loglikelihood(self, requests: Sequence[LoglikelihoodRequest]) -> list[Loglikelihood]:
        """Score the options of every request."""
        split = [self._split(request) for request in requests]
        rooms = [self._room(max(len(ids) for ids in options)) for _, options in split]
        contexts = self._cut([context for context, _ in split], rooms)
        rows = [
            (index, context, ids)
            for index, (context, (_, options)) in enumerate(zip(contexts, split, strict=True))
            for ids in options
        ]
        sums = [0.0] * len(rows)
        with self._evaluating():
            for batch in self._batches([len(context) + len(ids) for _, context, ids in rows]):
                scores = self._score([rows[n][1:] for n in batch])
                for n, score in zip(batch, scores.tolist(), strict=True):
                    sums[n] = score
        scored = iter(sums)
        return [
            Loglikelihood(tuple(next(scored) for _ in options), tuple(len(ids) for ids in options))
            for _, options in split
        ]

    def generate(self, requests: Sequence[GenerateRequest]) -> list[str]:
        """Continue every prompt greedily."""
        prompts = self._cut(
            [self._encode(request.prompt + self.answer_separator) for request in requests],
            [self._room(request.max_new_tokens) for request in requests],
        )
        texts: dict[int, str] = {}
        with self._evaluating():
            for bound in sorted({request.max_new_tokens for request in requests}):
                members = [i for i, r in enumerate(requests) if r.max_new_tokens == bound]
                for batch in self._batches([len(prompts[i]) + bound for i in members]):
                    rows = [members[k] for k in batch]
                    ids = self._continue([prompts[i] for i in rows], bound)
                    decoded = self._decode(ids, [requests[i] for i in rows])
                    texts.update(zip(rows, decoded, strict=True))
        return [texts[i] for i in range(len(requests))]

    def _encode(self, text: str) -> list[int]:
        """Tokens of ``text``, without an end that the tokenizer may add."""
        ids = list(self.tokenizer(text).input_ids)
        bare = self.tokenizer(text, add_special_tokens=False).input_ids
        ends_itself = bool(bare) and bare[-1] == self.eos_id
        if ids and ids[-1] == self.eos_id and not ends_itself:
            ids.pop()
        return ids or [self._first_id()]

    def _first_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return bos if bos is not None else self.eos_id

    def _split(self, request: LoglikelihoodRequest) -> tuple[list[int], list[list[int]]]:
        """Tokens all options are conditioned on, and the tokens to score of each option."""
        prompt = request.prompt + self.answer_separator
        alone = self._encode(prompt)
        together = [self._encode(prompt + option) for option in request.options]
        boundary = min(_common_prefix(alone, ids) for ids in together)
        for option, ids in zip(request.options, together, strict=True):
            if len(ids) <= boundary:
                raise ValueError(f"option {option!r} has no tokens; it cannot be scored")
        end = [self.eos_id] if self.end_of_option else []
        # A model needs at least one token to predict the next from.
        context = alone[:boundary] or [self._first_id()]
        return context, [[*ids[boundary:], *end] for ids in together]

    def _room(self, answer_tokens: int) -> int:
        room = self.max_tokens - answer_tokens
        if room < 1:
            raise ValueError(
                f"an answer of {answer_tokens} tokens leaves no room for a prompt within "
                f"{self.max_tokens} tokens"
            )
        return room

    def _score(self, rows: list[tuple[list[int], list[int]]]) -> Tensor:
        """Sum (N,) of the log-probabilities of each row's option tokens."""
        ids_NL, mask_NL = pad(
            [[*context, *option] for context, option in rows], value=self.pad_id, device=self.device
        )
        length = ids_NL.shape[1]
        keep = length - min(len(context) for context, _ in rows) + 1
        options = {"logits_to_keep": keep} if self._keeps_logits else {}
        logits_NLV = self.model(
            input_ids=ids_NL, attention_mask=mask_NL, use_cache=False, return_dict=True, **options
        ).logits
        dropped = length - logits_NLV.shape[1]
        places = [
            (n, at)
            for n, (context, option) in enumerate(rows)
            for at in range(len(context), len(context) + len(option))
        ]
        row_K, at_K = torch.tensor(places, device=self.device).unbind(dim=1)
        # The logits at one position predict the token at the next.
        logits_KV = logits_NLV[row_K, at_K - 1 - dropped].float()
        chosen_K = logits_KV.gather(-1, ids_NL[row_K, at_K].unsqueeze(-1)).squeeze(-1)
        scores_K = chosen_K - logits_KV.logsumexp(dim=-1)
        return torch.zeros(len(rows), device=self.device).index_add_(0, row_K, scores_K)

    def _continue(self, prompts: list[list[int]], max_new_tokens: int) -> Tensor:
        """Greedy continuation (N, L) of each prompt, without the prompt."""
        ids_NL, mask_NL = pad(prompts, value=self.pad_id, device=self.device, left=True)
        output = self._generate(ids_NL, mask_NL, max_new_tokens=max_new_tokens)
        return output[:, ids_NL.shape[1] :]


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
