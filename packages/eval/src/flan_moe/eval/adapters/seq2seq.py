"""Hugging Face encoder-decoders.

Shape suffixes: B prompts, S encoder positions, N option rows, L decoder positions, D model width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.modeling_outputs import BaseModelOutput

from flan_moe.eval.adapters.base import HFModel, cut_at_stop
from flan_moe.eval.adapters.batching import pad, token_budget_batches
from flan_moe.eval.requests import GenerateRequest, Loglikelihood, LoglikelihoodRequest, Request


class HFSeq2SeqModel(HFModel):
    """An encoder-decoder with the interface of T5: Flan-T5, T5, flan_moe and their like.

    Options are scored from one pass of the encoder per prompt. Prompts are padded on the right, and
    the decoder is bounded by each request alone, so that for a model to which padding makes no
    difference the answers do not depend on what else is in the batch.

    Example:
        >>> lm = HFSeq2SeqModel(model, tokenizer, device="cpu")  # doctest: +SKIP
        >>> lm.generate([GenerateRequest("Is a whale a fish?", 8)])  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        device: str | torch.device | None = None,
        max_input_tokens: int | None = None,
        token_budget: int | None = None,
        max_rows: int = 128,
        end_of_option: bool = True,
    ) -> None:
        """Wrap a model.

        Args:
            model: An encoder-decoder with a language-model head.
            tokenizer: Its tokenizer. Prompts are tokenized as it does by default.
            device: Moves the model there; None leaves it where it is.
            max_input_tokens: Longest prompt; None for the model's positions, or 2048 for a model
                with relative positions. T5's ``n_positions`` is not a limit and is not used.
            token_budget: Padded tokens per batch; None for 4,096 on a CPU and 65,536 elsewhere.
            max_rows: Rows per batch at most.
            end_of_option: Score an option together with the end of the sequence.

        Raises:
            ValueError: A setting is out of range, or model and tokenizer do not fit together.
        """
        super().__init__(
            model,
            tokenizer,
            device=device,
            max_input_tokens=max_input_tokens,
            token_budget=token_budget,
            max_rows=max_rows,
            end_of_option=end_of_option,
        )
        if not getattr(model.config, "is_encoder_decoder", False):
            raise ValueError(f"{type(model).__name__} is not an encoder-decoder")
        self._start_id = _decoder_start(model)

    def excess_tokens(self, request: Request) -> int:
        """How many tokens the prompt is over ``max_input_tokens``."""
        return len(self._prompt_ids(request.prompt)) - self.max_input_tokens

    def loglikelihood(self, requests: Sequence[LoglikelihoodRequest]) -> list[Loglikelihood]:
        """Score the options of every request, with one encoder pass per prompt."""
        prompts = [self._cut(self._prompt_ids(r.prompt), self.max_input_tokens) for r in requests]
        results: list[Loglikelihood | None] = [None] * len(requests)
        with self._evaluating():
            for batch in self._batches([len(ids) for ids in prompts]):
                options = [[self._option_ids(o) for o in requests[i].options] for i in batch]
                scores = self._score_batch([prompts[i] for i in batch], options)
                for index, sums, rows in zip(batch, scores, options, strict=True):
                    counts = tuple(len(ids) for ids in rows)
                    results[index] = Loglikelihood(tuple(sums), counts)
        return [result for result in results if result is not None]

    def generate(self, requests: Sequence[GenerateRequest]) -> list[str]:
        """Continue every prompt greedily."""
        prompts = [self._cut(self._prompt_ids(r.prompt), self.max_input_tokens) for r in requests]
        texts = [""] * len(requests)
        with self._evaluating():
            for bound in sorted({request.max_new_tokens for request in requests}):
                members = [i for i, r in enumerate(requests) if r.max_new_tokens == bound]
                # The decoder's states count too: a long answer needs a smaller batch.
                lengths = [max(len(prompts[i]), bound) for i in members]
                for batch in self._batches(lengths):
                    rows = [members[k] for k in batch]
                    outputs = self._generate_batch([prompts[i] for i in rows], bound)
                    for i, text in zip(rows, outputs, strict=True):
                        texts[i] = cut_at_stop(text, requests[i].stop)
        return texts

    def _batches(self, lengths: Sequence[int]) -> list[list[int]]:
        return token_budget_batches(lengths, token_budget=self.token_budget, max_rows=self.max_rows)

    def _prompt_ids(self, prompt: str) -> list[int]:
        return list(self.tokenizer(prompt).input_ids) or [self.eos_id]

    def _option_ids(self, option: str) -> list[int]:
        ids = list(self.tokenizer(text_target=option).input_ids)
        ends = bool(ids) and ids[-1] == self.eos_id
        if self.end_of_option:
            return ids if ends else [*ids, self.eos_id]
        return ids[:-1] if ends and len(ids) > 1 else ids

    def _score_batch(
        self, prompts: list[list[int]], options: list[list[list[int]]]
    ) -> list[list[float]]:
        """Sum of log-probabilities of every option of every prompt of one batch."""
        input_ids_BS, mask_BS = pad(prompts, value=self.pad_id, device=self.device)
        encoder = self.model.get_encoder()
        states_BSD = encoder(input_ids=input_ids_BS, attention_mask=mask_BS, return_dict=True)[0]
        flat = [(b, ids) for b, rows in enumerate(options) for ids in rows]
        sums = [0.0] * len(flat)
        width = input_ids_BS.shape[1]
        for rows in self._batches([max(width, len(ids)) for _, ids in flat]):
            owner_N = torch.tensor([flat[n][0] for n in rows], device=self.device)
            labels = [flat[n][1] for n in rows]
            scores_N = self._score_rows(states_BSD[owner_N], mask_BS[owner_N], labels)
            for n, score in zip(rows, scores_N.tolist(), strict=True):
                sums[n] = score
        counts = iter(sums)
        return [[next(counts) for _ in rows] for rows in options]

    def _score_rows(self, states_NSD: Tensor, mask_NS: Tensor, labels: list[list[int]]) -> Tensor:
        """Log-probability (N,) of each row of labels under teacher forcing."""
        labels_NL, mask_NL = pad(labels, value=self.pad_id, device=self.device)
        inputs_NL = torch.roll(labels_NL, 1, dims=1)
        inputs_NL[:, 0] = self._start_id
        logits_NLV = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states_NSD),
            attention_mask=mask_NS,
            decoder_input_ids=inputs_NL,
            decoder_attention_mask=mask_NL,
            use_cache=False,
            return_dict=True,
        ).logits.float()
        chosen_NL = logits_NLV.gather(-1, labels_NL.unsqueeze(-1)).squeeze(-1)
        scores_NL = chosen_NL - logits_NLV.logsumexp(dim=-1)
        return scores_NL.masked_fill(mask_NL == 0, 0.0).sum(dim=-1)

    def _generate_batch(self, prompts: list[list[int]], max_new_tokens: int) -> list[str]:
        input_ids_BS, mask_BS = pad(prompts, value=self.pad_id, device=self.device)
        output_BL = self.model.generate(
            input_ids=input_ids_BS,
            attention_mask=mask_BS,
            generation_config=GenerationConfig(
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=self.pad_id,
                eos_token_id=self.eos_id,
                decoder_start_token_id=self._start_id,
            ),
        )
        # The first column is the start token, which is not part of the answer.
        return self.tokenizer.batch_decode(
            output_BL[:, 1:], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


def _decoder_start(model: Any) -> int:
    for holder in (getattr(model, "generation_config", None), model.config):
        start = getattr(holder, "decoder_start_token_id", None)
        if start is not None:
            return int(start)
    raise ValueError(
        f"{type(model).__name__}: config.decoder_start_token_id is None; expected a token id"
    )
