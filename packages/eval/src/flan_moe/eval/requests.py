"""What is asked of a language model, and what it answers."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class GenerateRequest:
    """Continue a prompt greedily.

    Attributes:
        prompt: The whole prompt, exemplars included.
        max_new_tokens: Upper bound on generated tokens.
        stop: Strings that end the answer; the text from the first of them on is cut off.
    """

    prompt: str
    max_new_tokens: int
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: {self.max_new_tokens}; expected at least 1")
        if not all(self.stop):
            raise ValueError(f"stop: {self.stop!r}; expected strings that are not empty")


@dataclass(frozen=True)
class LoglikelihoodRequest:
    """Score every option as the answer to one prompt.

    The options travel together because an encoder-decoder then reads the prompt once for all of
    them.

    Attributes:
        prompt: The whole prompt, exemplars included.
        options: Candidate answers, as they would be written after the prompt.
    """

    prompt: str
    options: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.options:
            raise ValueError("options: empty; expected at least one candidate answer")


@dataclass(frozen=True)
class Loglikelihood:
    """Log-probabilities of the options of one request, in its order.

    Attributes:
        log_probabilities: Natural logarithm of p(option | prompt), summed over its tokens.
        token_counts: Number of tokens each sum runs over.
    """

    log_probabilities: tuple[float, ...]
    token_counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.log_probabilities) != len(self.token_counts):
            raise ValueError(
                f"log_probabilities has {len(self.log_probabilities)} entries and token_counts "
                f"{len(self.token_counts)}; expected one of each per option"
            )
        if not all(map(math.isfinite, self.log_probabilities)):
            # NaN compares with nothing: the first option would pass for the likeliest.
            raise ValueError(
                f"log_probabilities: {self.log_probabilities}; expected finite numbers (are the "
                "model's weights damaged, or is its dtype too narrow?)"
            )


Request = GenerateRequest | LoglikelihoodRequest
Response = str | Loglikelihood
