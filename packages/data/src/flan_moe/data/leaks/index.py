"""Evaluation questions, to be found again in training texts.

A question of n words or more is looked for by its n-grams (Brown et al. 2020, appendix C, with
their n of 13); a shorter one as a whole. The short part of a question in parts counts beside a long
one, not alone. Runs of words that many questions of a set share are its
wording, not its content ("Which of the following is ..."): they do not count as found, unless a
question consists of nothing else; such a question must be there entirely.

Legend: I items, K keys (numbers of n-grams), P postings (pairs of key and item).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from flan_moe.data.leaks.evaluation import EvaluationItem
from flan_moe.data.leaks.words import WordNumbers, ngram_numbers

N = 13
SHORTEST = 8  # words of a question that is looked for inside other text
MOST_COMMON = 10  # questions of a set that may share a run before it counts as wording


@dataclass(frozen=True, kw_only=True)
class Postings:
    """Runs of one length.

    Attributes:
        n: Their length in words.
        key_K: Their numbers, sorted, (K,) uint64.
        start_K: Where a key's items begin in ``item_P``, (K + 1,) int64.
        item_P: Items that contain the run, (P,) int64.
        common_P: Whether the run is wording of the item's set, (P,) bool.
        weak_P: Whether the run is a short part of the item, (P,) bool.
    """

    n: int
    key_K: np.ndarray
    start_K: np.ndarray
    item_P: np.ndarray
    common_P: np.ndarray
    weak_P: np.ndarray


@dataclass(frozen=True, kw_only=True)
class EvaluationIndex:
    """What `flan_moe.data.leaks.scan` looks for; made by `build`.

    Attributes:
        items: The questions.
        runs_I: How many different runs each has that count, (I,) int64.
        whole_only_I: Whether only the whole question counts, (I,) bool: all its runs are wording.
        postings: For each length of runs.
        short: Number of a whole line, then the items that are just that: too short to be looked
            for inside other text.
        n: Words of a run at most.
        shortest: Fewest words of a question that is looked for inside other text.
        wording: Set, then how many different runs were found to be its wording.
        unusable: Items without any word.
    """

    items: tuple[EvaluationItem, ...]
    runs_I: np.ndarray
    whole_only_I: np.ndarray
    postings: tuple[Postings, ...]
    short: dict[int, list[int]]
    n: int
    shortest: int
    wording: dict[str, int] = field(default_factory=dict)
    unusable: tuple[int, ...] = ()

    @classmethod
    def build(
        cls,
        items: Iterable[EvaluationItem],
        *,
        n: int = N,
        shortest: int = SHORTEST,
        most_common: int = MOST_COMMON,
    ) -> EvaluationIndex:
        """Index questions.

        Args:
            items: Of any number of sets.
            n: Words of a run.
            shortest: Questions with fewer words are found only as a line of their own.
            most_common: Questions of one set that may share a run before it counts as wording.

        Raises:
            ValueError: There are no items, or a number is out of range.
        """
        items = tuple(items)
        if not items:
            raise ValueError("no evaluation questions; expected at least one")
        if not 1 <= shortest <= n:
            raise ValueError(f"n is {n}, shortest is {shortest}; expected 1 <= shortest <= n")
        if most_common < 1:
            raise ValueError(f"most_common is {most_common}; expected 1 or more")
        words = WordNumbers()
        runs: dict[int, dict[int, list[int]]] = defaultdict(dict)
        short: dict[int, list[int]] = {}
        unusable = []
        weak: set[tuple[int, int, int]] = set()
        of_item: list[set[tuple[int, int]]] = []
        for number, item in enumerate(items):
            parts = [part_W for part in item.parts if len(part_W := words.of(part))]
            if max(map(len, parts), default=0) < shortest and parts:
                parts = [np.concatenate(parts)]  # together they may be long enough
            of_item.append(set())
            if not parts:
                unusable.append(number)
            elif len(parts) == 1 and len(parts[0]) < shortest:
                key = int(ngram_numbers(parts[0], len(parts[0]))[0])
                short.setdefault(key, []).append(number)
                continue
            for part_W in parts:
                m = min(n, len(part_W))
                keys = {(m, key) for key in ngram_numbers(part_W, m).tolist()}
                if len(part_W) < shortest:
                    weak.update((m, key, number) for m, key in keys - of_item[-1])
                of_item[-1] |= keys
            for m, key in sorted(of_item[-1]):
                runs[m].setdefault(key, []).append(number)
        common = _wording(items, runs, most_common)
        counts_I = np.array([len(keys) for keys in of_item])
        own_I = np.array(
            [
                sum((*run, items[number].set) not in common for run in keys)
                for number, keys in enumerate(of_item)
            ]
        )
        whole_only_I = (counts_I > 0) & (own_I == 0)
        return cls(
            items=items,
            runs_I=np.where(whole_only_I, counts_I, own_I),
            whole_only_I=whole_only_I,
            postings=tuple(_postings(m, runs[m], items, common, weak) for m in sorted(runs)),
            short=short,
            n=n,
            shortest=shortest,
            wording=dict(Counter(name for _, _, name in common)),
            unusable=tuple(unusable),
        )


def _wording(
    items: tuple[EvaluationItem, ...], runs: dict[int, dict[int, list[int]]], most: int
) -> set[tuple[int, int, str]]:
    """Length, number and set of the runs that more than ``most`` different questions share."""
    common = set()
    for m, keys in runs.items():
        for key, numbers in keys.items():
            if len(numbers) <= most:
                continue
            questions = defaultdict(set)
            for number in numbers:
                questions[items[number].set].add(items[number].parts)
            common.update((m, key, name) for name, them in questions.items() if len(them) > most)
    return common


def _postings(
    m: int,
    keys: dict[int, list[int]],
    items: tuple[EvaluationItem, ...],
    common: set[tuple[int, int, str]],
    weak: set[tuple[int, int, int]],
) -> Postings:
    ordered = sorted(keys)
    pairs = [(key, number) for key in ordered for number in keys[key]]
    return Postings(
        n=m,
        key_K=np.array(ordered, np.uint64),
        start_K=np.concatenate([[0], np.cumsum([len(keys[key]) for key in ordered])]).astype(
            np.int64
        ),
        item_P=np.array([number for _, number in pairs], np.int64),
        common_P=np.array([(m, key, items[i].set) in common for key, i in pairs], bool),
        weak_P=np.array([(m, key, i) in weak for key, i in pairs], bool),
    )
