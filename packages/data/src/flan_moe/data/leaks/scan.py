"""Looks for evaluation questions in training texts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from flan_moe.data.leaks.index import EvaluationIndex, Postings
from flan_moe.data.leaks.words import WordNumbers, ngram_numbers

BATCH = 512  # texts looked through at once
_FILTER_BITS = 22


@dataclass(frozen=True, kw_only=True)
class TrainingText:
    """What one training sample shows.

    Attributes:
        task: Its task.
        sample: Its number, to be found again.
        parts: Its texts: prompt and target.
    """

    task: str
    sample: int
    parts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Leak:
    """One evaluation question found in one training sample.

    Attributes:
        task: Of the training sample.
        sample: Number of the training sample.
        item: Index of the question in `EvaluationIndex.items`.
        found: Share of the question's runs of words that the sample shows.
        exact: Whether the whole question is there.
    """

    task: str
    sample: int
    item: int
    found: float
    exact: bool


def scan(texts: Iterable[TrainingText], index: EvaluationIndex) -> Iterator[Leak]:
    """Every question that a training text shows, wholly or in part.

    Args:
        texts: In any number; they are read once and not kept.
        index: Of the evaluation questions.

    Yields:
        In the order of the texts, then of the questions.
    """
    words = WordNumbers()
    filters = [_Filter(postings) for postings in index.postings]
    iterator = iter(texts)
    while batch := list(islice(iterator, BATCH)):
        yield from _scan_batch(batch, index, filters, words)


class _Filter:
    """Tells which numbers of runs are among the keys; most are not, and that costs one look."""

    def __init__(self, postings: Postings) -> None:
        self.postings = postings
        self._maybe = np.zeros(1 << _FILTER_BITS, bool)
        self._maybe[self._slot(postings.key_K)] = True

    @staticmethod
    def _slot(number_G: np.ndarray) -> np.ndarray:
        return (number_G >> np.uint64(64 - _FILTER_BITS)).astype(np.int64)

    def hits(self, number_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions that hit, and the index of the key of each."""
        at = np.flatnonzero(self._maybe[self._slot(number_G)])
        key = np.searchsorted(self.postings.key_K, number_G[at])
        key = np.minimum(key, len(self.postings.key_K) - 1)
        good = self.postings.key_K[key] == number_G[at]
        return at[good], key[good]


def _scan_batch(
    batch: list[TrainingText],
    index: EvaluationIndex,
    filters: list[_Filter],
    words: WordNumbers,
) -> Iterator[Leak]:
    found: dict[tuple[int, int], set[int]] = defaultdict(set)  # (text, item), then keys
    strong: set[tuple[int, int]] = set()
    whole: set[tuple[int, int]] = set()
    parts = [(number, part) for number, text in enumerate(batch) for part in text.parts]
    lines: list[np.ndarray] = []
    part_of: list[int] = []
    for number, (_, part) in enumerate(parts):
        for line in part.splitlines():
            lines.append(words.of(line))
            part_of.append(number)
    words_W = np.concatenate([*lines, np.empty(0, np.uint64)])
    part_W = np.repeat(np.array(part_of, np.int64), [len(line_W) for line_W in lines])
    for each in filters:
        postings = each.postings
        for position, key in zip(*each.hits(ngram_numbers(words_W, postings.n)), strict=True):
            part = part_W[position]
            if part != part_W[position + postings.n - 1]:
                continue  # runs over the end of a text
            for at in range(postings.start_K[key], postings.start_K[key + 1]):
                item = int(postings.item_P[at])
                if not postings.common_P[at] or index.whole_only_I[item]:
                    pair = (parts[part][0], item)
                    found[pair].add(int(postings.key_K[key]))
                    if not postings.weak_P[at]:
                        strong.add(pair)
    if index.short:
        for line_W, part in zip(lines, part_of, strict=True):
            if 0 < len(line_W) < index.shortest:
                key = int(ngram_numbers(line_W, len(line_W))[0])
                whole.update((parts[part][0], item) for item in index.short.get(key, ()))
    for number, item in sorted(found.keys() | whole):
        share = 1.0
        if (number, item) not in whole:
            share = len(found[number, item]) / int(index.runs_I[item])
        if share < 1 and (index.whole_only_I[item] or (number, item) not in strong):
            continue
        text = batch[number]
        yield Leak(task=text.task, sample=text.sample, item=item, found=share, exact=share == 1)
