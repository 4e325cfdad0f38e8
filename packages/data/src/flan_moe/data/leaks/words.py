"""Texts as sequences of words, words as 64-bit numbers, and n-grams as sums of them.

Case, accents' composition, punctuation and blanks do not count, so that a question is found again
whatever was put around it. Legend: W words of a text, G n-grams.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

import numpy as np

_WORD = re.compile(r"[^\W_]+")
_LARGEST_MEMORY = 4_000_000  # words remembered before the memory is emptied
_FACTOR = 0x9E3779B97F4A7C15  # odd, so that powers of it keep all 64 bits


class WordNumbers:
    """Numbers of words; remembers those it has met."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def of(self, text: str) -> np.ndarray:
        """The words of a text as (W,) uint64."""
        words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
        known = self._known
        if len(known) > _LARGEST_MEMORY:
            known.clear()
        numbers = np.empty(len(words), np.uint64)
        for index, word in enumerate(words):
            number = known.get(word)
            if number is None:
                number = known[word] = _number(word)
            numbers[index] = number
        return numbers


def ngram_numbers(words_W: np.ndarray, n: int) -> np.ndarray:
    """A number for each run of n words, (W - n + 1,) uint64; equal for equal runs.

    Different runs get different numbers but for one in 2**64.
    """
    count = len(words_W) - n + 1
    if count < 1:
        return np.empty(0, np.uint64)
    total_G = np.zeros(count, np.uint64)
    power = 1
    for offset in range(n):
        total_G += words_W[offset : offset + count] * np.uint64(power)
        power = power * _FACTOR % 2**64
    return total_G


def _number(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
