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
    of 8 bytes: a whole Flan collection fits in memory.
    """

    def __init__(self) -> None:
        self._digests = array("Q")

    def add(self, example: Example) -> None:
        """Remember the problem of an example and those of its exemplars."""
        texts = [example.prompt, *example.meta.get("shown", ()), *example.meta.get("problems", ())]
        self._digests.extend(map(_digest, texts))

    def among(self, items: Iterable[SuiteItem]) -> set[SuiteItem]:
        """Those of the questions that training shows, by their bare problem or their prompt."""
        by_digest: dict[int, list[SuiteItem]] = {}
        for item in items:
            for text in (item.input, item.problem):
                by_digest.setdefault(_digest(text), []).append(item)
        asked = np.array(list(by_digest), dtype=np.uint64)
        found = asked[np.isin(asked, np.frombuffer(self._digests, dtype=np.uint64))]
        return {item for key in found.tolist() for item in by_digest[key]}


def _digest(text: str) -> int:
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return int.from_bytes(hashlib.blake2b(plain.encode(), digest_size=8).digest(), "little")
