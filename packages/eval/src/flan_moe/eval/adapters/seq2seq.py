"""Hugging Face encoder-decoders.

Shape suffixes: B prompts, S encoder positions, N options of all prompts, L decoder positions,
D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from flan_moe.eval.adapters.base import HFModel
from flan_moe.eval.adapters.batching import pad
from flan_moe.eval.requests import GenerateRequest, Loglikelihood, LoglikelihoodRequest, Request

CPU_TOKEN_BUDGET = 4096
ACCELERATOR_TOKEN_BUDGET = 65536


class HFSeq2SeqModel(HFModel):
    """An encoder-decoder with the interface of T5: T5, Flan-T5, flan_moe and their like.

    Options are scored from one pass of the encoder per prompt. Prompts are padded on the right, and
    the decoder is bounded by each request alone, so that for a model to which padding makes no
    difference the answers do not depend on what else is in the batch.

    Example:
        lm = HFSeq2SeqModel(model, tokenizer, device="cpu")
        lm.generate([GenerateRequest("Is a whale a fish?", max_new_tokens=8)])
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
            max_input_tokens: Longest prompt; longer ones lose their beginning, with a warning. None
                for the model's positions, or 2048 for a model with relative positions. T5's
                ``n_positions`` is not a limit and is not used.
            token_budget: Padded tokens per batch; None for 4,096 on a CPU and 65,536 elsewhere.
            max_rows: Rows per batch at most.
            end_of_option: Score an option together with the end of the sequence.

        Raises:
            ValueError: A setting is out of range, or model and tokenizer do not fit together.
        """
        if not getattr(model.config, "is_encoder_decoder", False):
            raise ValueError(f"{type(model).__name__} is not an encoder-decoder")
        on_cpu = torch.device(device or model.device).type == "cpu"
        default_budget = CPU_TOKEN_BUDGET if on_cpu else ACCELERATOR_TOKEN_BUDGET
        super().__init__(
            model,
            tokenizer,
            device=device,
            max_tokens=max_input_tokens,
            token_budget=default_budget if token_budget is None else token_budget,
            max_rows=max_rows,
            end_of_option=end_of_option,
        )
        self._start_id = _decoder_start(model)

    def excess_tokens(self, request: Request) -> int:
        """How many tokens the prompt is over ``max_input_tokens``."""
        return len(self._prompt_ids([request.prompt])[0]) - self.max_tokens

    def loglikelihood(self, requests: Sequence[LoglikelihoodRequest]) -> list[Loglikelihood]:
        """Score the options of every request, with one encoder pass per prompt."""
        prompts = self._fitting_prompts(requests)
        options = [[self._option_ids(option) for option in r.options] for r in requests]
        lengths = [
            max(len(prompt), *(len(ids) for ids in rows))
            for prompt, rows in zip(prompts, options, strict=True)
        ]
        results: dict[int, Loglikelihood] = {}
        with self._evaluating():
            for batch in self._batches(lengths, copies=[len(rows) for rows in options]):
                scores = self._score([prompts[i] for i in batch], [options[i] for i in batch])
                for i, values in zip(batch, scores, strict=True):
                    counts = tuple(len(ids) for ids in options[i])
                    results[i] = Loglikelihood(tuple(values), counts)
        return [results[i] for i in range(len(requests))]

    def generate(self, requests: Sequence[GenerateRequest]) -> list[str]:
        """Continue every prompt greedily."""
        prompts = self._fitting_prompts(requests)
        texts: dict[int, str] = {}
        with self._evaluating():
            for bound in sorted({request.max_new_tokens for request in requests}):
                members = [i for i, r in enumerate(requests) if r.max_new_tokens == bound]
                # The decoder's states count too: a long answer needs a smaller batch.
                for batch in self._batches([max(len(prompts[i]), bound) for i in members]):
                    rows = [members[k] for k in batch]
                    ids = self._continue([prompts[i] for i in rows], bound)
                    decoded = self._decode(ids, [requests[i] for i in rows])
                    texts.update(zip(rows, decoded, strict=True))
        return [texts[i] for i in range(len(requests))]

    def _prompt_ids(self, prompts: list[str]) -> list[list[int]]:
        return [list(ids) or [self.eos_id] for ids in self.tokenizer(prompts).input_ids]

    def _fitting_prompts(self, requests: Sequence[Request]) -> list[list[int]]:
        if not requests:
            return []
        prompts = self._prompt_ids([request.prompt for request in requests])
        return self._cut(prompts, [self.max_tokens] * len(prompts))

    def _option_ids(self, option: str) -> list[int]:
        ids = list(self.tokenizer(text_target=option).input_ids)
        if ids and ids[-1] == self.eos_id:
            ids.pop()
        if not ids:
            raise ValueError(f"option {option!r} has no tokens; it cannot be scored")
        return [*ids, self.eos_id] if self.end_of_option else ids

    def _score(self, prompts: list[list[int]], options: list[list[list[int]]]) -> list[list[float]]:
        """Sum of log-probabilities of every option of every prompt of one batch.

        The encoder and the decoder's first step, which projects the encoder's states to keys and
        values, run once per prompt; only the options' own tokens run once per option.
        """
        input_ids_BS, mask_BS = pad(prompts, value=self.pad_id, device=self.device)
        encoder = self.model.get_encoder()
        states_BSD = encoder(input_ids=input_ids_BS, attention_mask=mask_BS, return_dict=True)[0]
        first = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states_BSD),
            attention_mask=mask_BS,
            decoder_input_ids=torch.full_like(input_ids_BS[:, :1], self._start_id),
            use_cache=True,
            return_dict=True,
        )
        counts = [len(rows) for rows in options]
        owner_N = torch.arange(len(prompts), device=self.device).repeat_interleave(
            torch.tensor(counts, device=self.device)
        )
        labels_NL, label_mask_NL = pad(
            [ids for rows in options for ids in rows], value=self.pad_id, device=self.device
        )
        log_p_NL = _log_probability(first.logits[owner_N], labels_NL[:, :1])
        if labels_NL.shape[1] > 1:
            # transformers 5.24 gave the cache another name, in outputs and arguments alike.
            key = "cache" if "cache" in first else "past_key_values"
            first[key].reorder_cache(owner_N)
            logits_NLV = self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=states_BSD[owner_N]),
                attention_mask=mask_BS[owner_N],
                decoder_input_ids=labels_NL[:, :-1],
                decoder_attention_mask=label_mask_NL,
                **{key: first[key]},
                use_cache=True,
                return_dict=True,
            ).logits
            log_p_NL = torch.cat([log_p_NL, _log_probability(logits_NLV, labels_NL[:, 1:])], dim=1)
        sums_N = log_p_NL.masked_fill(label_mask_NL == 0, 0.0).sum(dim=1)
        return [values.tolist() for values in sums_N.split(counts)]

    def _continue(self, prompts: list[list[int]], max_new_tokens: int) -> Tensor:
        """Greedy continuation (B, L) of each prompt, without the start token."""
        input_ids_BS, mask_BS = pad(prompts, value=self.pad_id, device=self.device)
        output_BL = self._generate(
            *(input_ids_BS, mask_BS),
            max_new_tokens=max_new_tokens,
            decoder_start_token_id=self._start_id,
        )
        return output_BL[:, 1:]


def _log_probability(logits_NLV: Tensor, labels_NL: Tensor) -> Tensor:
    """Log-probability (N, L) of each label, in float32."""
    logits_NLV = logits_NLV.float()
    chosen_NL = logits_NLV.gather(-1, labels_NL.unsqueeze(-1)).squeeze(-1)
    return chosen_NL - logits_NLV.logsumexp(dim=-1)


def _decoder_start(model: Any) -> int:
    for holder in (getattr(model, "generation_config", None), model.config):
        start = getattr(holder, "decoder_start_token_id", None)
        if start is not None:
            return int(start)
    raise ValueError(
        f"{type(model).__name__}: config.decoder_start_token_id is None; expected a token id"
    )
