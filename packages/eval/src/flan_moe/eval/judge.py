"""From a model's response to a judged sample."""

from __future__ import annotations

from collections.abc import Callable

from flan_moe.eval.extract import AnswerKind, extract_answer
from flan_moe.eval.prompts import Prompt
from flan_moe.eval.requests import Loglikelihood, Response
from flan_moe.eval.samples import Sample
from flan_moe.eval.scoring import choose, exact_match
from flan_moe.eval.suite import Item, Mode


def judge(
    item: Item,
    prompt: Prompt,
    response: Response,
    *,
    kind: AnswerKind,
    mode: Mode,
    answer_cue: str,
    count_tokens: Callable[[str], int] | None = None,
) -> Sample:
    """Find the answer in a response and compare it with the right ones.

    Args:
        item: The question.
        prompt: The prompt it was asked with.
        response: Generated text, or log-probabilities of the item's options.
        kind: What the task's answers look like.
        mode: "direct" or "cot".
        answer_cue: Words before the answer in a chain of thought.
        count_tokens: Measures generated text; None where the model cannot.
    """
    if isinstance(response, Loglikelihood):
        return _judge_options(item, prompt, response)
    found = extract_answer(
        response, kind=kind, mode=mode, answer_cue=answer_cue, options=item.options or ()
    )
    return Sample(
        id=item.id,
        prompt=prompt.text,
        exemplars=prompt.exemplars,
        excess_tokens=prompt.excess_tokens,
        targets=item.targets,
        options=item.options,
        output=response,
        output_tokens=count_tokens(response) if count_tokens is not None else None,
        log_probabilities=None,
        token_counts=None,
        answer=found.answer,
        how=found.how,
        correct=exact_match(found.answer, item.targets, kind=kind),
        secondary={"strict_exact_match": response.strip() in map(str.strip, item.targets)}
        if mode == "direct"
        else {},
    )


def _judge_options(item: Item, prompt: Prompt, scores: Loglikelihood) -> Sample:
    options = item.options or ()
    if len(scores.log_probabilities) != len(options):
        raise ValueError(
            f"item {item.id!r}: {len(scores.log_probabilities)} log-probabilities for "
            f"{len(options)} options"
        )
    choices = choose(scores)
    return Sample(
        id=item.id,
        prompt=prompt.text,
        exemplars=prompt.exemplars,
        excess_tokens=prompt.excess_tokens,
        targets=item.targets,
        options=item.options,
        output=None,
        output_tokens=None,
        log_probabilities=scores.log_probabilities,
        token_counts=scores.token_counts,
        answer=options[choices.total],
        how="likeliest",
        correct=options[choices.total] in item.targets,
        secondary={"per_token_accuracy": options[choices.per_token] in item.targets},
    )
