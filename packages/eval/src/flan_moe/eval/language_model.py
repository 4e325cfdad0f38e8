"""The interface between the evaluator and any model.

A model needs two methods. Two further protocols are optional, and each switches on what it makes
possible: a fingerprint makes logs resumable, knowledge of tokens makes prompts fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from flan_moe.eval.requests import GenerateRequest, Loglikelihood, LoglikelihoodRequest, Request


@runtime_checkable
class LanguageModel(Protocol):
    """A model that scores and continues text; answers come in the order of the requests."""

    def loglikelihood(self, requests: Sequence[LoglikelihoodRequest]) -> list[Loglikelihood]:
        """Score the options of every request."""
        ...

    def generate(self, requests: Sequence[GenerateRequest]) -> list[str]:
        """Continue every prompt greedily, prompt not included, cut at the stop strings."""
        ...


@runtime_checkable
class Fingerprinted(Protocol):
    """A model that can say which model it is."""

    @property
    def fingerprint(self) -> str:
        """A digest of everything that decides the answers: weights, tokenizer, settings."""
        ...


@runtime_checkable
class TokenAware(Protocol):
    """A model that can measure text in its own tokens."""

    def count_tokens(self, text: str) -> int:
        """Number of tokens of ``text``, special tokens left out."""
        ...

    def excess_tokens(self, request: Request) -> int:
        """How many tokens ``request`` is over the model's limit; zero or less when it fits."""
        ...
