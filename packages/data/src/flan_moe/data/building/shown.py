"""What training shows, so that no evaluation question is among it."""

from __future__ import annotations

import hashlib
import unicodedata
from array import array
from collections.abc import Iterable

import numpy as np

from flan_moe.data.example import Example
from flan_moe.data.suite import SuiteItem


class ShownProblems:
    """Every problem of the training and validation examples, whatever its task and wording.

    A problem is kept twice: bare (`Example` ``meta["problems"]``) and as the zero-shot prompt it
    was given (``meta["shown"]``). Texts are compared without regard to case and blanks, as digests
    of 8 bytes.
    """

    def __init__(self) -> None:
        self._digests = array("Q")

    def add(self, example: Example) -> None:
        """Remember the problem of an example and those of its exemplars."""
        texts = {example.prompt, *example.meta.get("shown", ()), *example.meta.get("problems", ())}
        self._digests.extend(map(_digest, texts))

    def digests_N(self) -> np.ndarray:
        """The digests so far, (N,) uint64, sorted, each once."""
        return np.unique(np.frombuffer(self._digests, dtype=np.uint64))


def shown_among(items: Iterable[SuiteItem], digests: Iterable[np.ndarray]) -> set[SuiteItem]:
    """Those of the questions that training shows, by their bare problem or their prompt.

    Args:
        items: Questions.
        digests: Of `ShownProblems`, part after part; a whole Flan collection passes through.
    """
    by_digest: dict[int, list[SuiteItem]] = {}
    for item in items:
        for text in (item.input, item.problem):
            by_digest.setdefault(_digest(text), []).append(item)
    asked_A = np.array(sorted(by_digest), dtype=np.uint64)
    seen_A = np.zeros(len(asked_A), dtype=bool)
    for digests_N in digests:
        seen_A |= np.isin(asked_A, digests_N)
    return {item for key in asked_A[seen_A].tolist() for item in by_digest[key]}


def _digest(text: str) -> int:
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return int.from_bytes(hashlib.blake2b(plain.encode(), digest_size=8).digest(), "little")
