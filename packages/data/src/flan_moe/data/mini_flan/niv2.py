"""Six families in the manner of Natural Instructions v2: a definition, examples, an instance."""

from __future__ import annotations

from random import Random

from flan_moe.data.mini_flan.family import Family, Instance
from flan_moe.data.mini_flan.lexicon import KINDS, WORDS, kind_of


def _reverse_list(rng: Random) -> Instance:
    words = rng.sample(WORDS, rng.randint(2, 4))
    return Instance(fields={"input": " ".join(words)}, answer=" ".join(reversed(words)))


def _with_repeats(rng: Random, word: str, times: int) -> list[str]:
    """The word so many times among two or three others, in random order."""
    others = rng.sample([other for other in WORDS if other != word], rng.randint(2, 3))
    words = [word] * times + others
    rng.shuffle(words)
    return words


def _count_word(rng: Random) -> Instance:
    # Neither the length of the list nor another word that is there often tells the number.
    word, *others = rng.sample(WORDS, 3)
    times = rng.randint(0, 4)
    words = [word] * times + rng.choices(others, k=rng.randint(4, 6) - times)
    rng.shuffle(words)
    return Instance(fields={"input": f"{word} in {' '.join(words)}"}, answer=str(times))


def _replace_word(rng: Random) -> Instance:
    old, new = rng.sample(WORDS, 2)
    words = _with_repeats(rng, old, rng.randint(1, 2))
    answer = " ".join(new if word == old else word for word in words)
    return Instance(fields={"input": f"{old} by {new} in {' '.join(words)}"}, answer=answer)


def _remove_word(rng: Random) -> Instance:
    word = rng.choice(WORDS)
    words = _with_repeats(rng, word, rng.randint(1, 2))
    answer = " ".join(other for other in words if other != word)
    return Instance(fields={"input": f"{word} in {' '.join(words)}"}, answer=answer)


def _extract(rng: Random, kind: str) -> Instance:
    """Words of the kind among words of other kinds; the answer keeps their order."""
    others = [word for word in WORDS if kind_of(word) != kind]
    words = rng.sample(KINDS[kind][1], rng.randint(1, 2)) + rng.sample(others, rng.randint(1, 2))
    rng.shuffle(words)
    answer = " ".join(word for word in words if kind_of(word) == kind)
    fields = {"input": " ".join(words), "kind": kind, "kinds": KINDS[kind][0]}
    return Instance(fields=fields, answer=answer)


def _extract_kind(rng: Random) -> Instance:
    return _extract(rng, rng.choice([kind for kind in sorted(KINDS) if kind != "colour"]))


def _extract_colours(rng: Random) -> Instance:
    return _extract(rng, "colour")


EXTRACT_DEFINITIONS = (
    "You are given some words. Write all {kinds} among them, in the same order.",
    "Copy every {kind} from the list and leave out the rest.",
    "In this task you keep only the {kinds} of a list of words.",
    "Which of the given words are {kinds}? Write them in the order of the list.",
)

FAMILIES = (
    Family(
        name="reverse_list",
        mixture="niv2",
        cluster="ordering",
        kind="generate",
        generate=_reverse_list,
        templates=(
            "You are given a list of words. Write the list backwards.",
            "Write the words in reverse order.",
            "In this task you turn a list around, so that the last word comes first.",
            "Copy the words from the last to the first.",
        ),
    ),
    Family(
        name="count_word",
        mixture="niv2",
        cluster="counting",
        held_out=True,
        kind="generate",
        chance=1 / 5,  # any number from 0 to 4
        generate=_count_word,
        templates=(
            "Count how often the first word is in the list that follows.",
            "You are given a word and a list. Write the number of times the word is in the list.",
            "In this task you count a word in a list.",
            "How many times does the list hold the word?",
        ),
    ),
    Family(
        name="extract_kind",
        mixture="niv2",
        cluster="extraction",
        kind="generate",
        chance=5 / 24,  # the first word: half want one word, of two or three
        generate=_extract_kind,
        templates=EXTRACT_DEFINITIONS,
    ),
    Family(
        name="replace_word",
        mixture="niv2",
        cluster="editing",
        kind="generate",
        generate=_replace_word,
        templates=(
            "Replace the first word by the second word in the list that follows.",
            "You are given two words and a list. Write the list with the second word wherever the "
            "first word is.",
            "In this task you replace a word of a list by another word.",
            "Copy the list, but change one word into the other.",
        ),
    ),
    Family(
        name="extract_colours",
        mixture="niv2",
        cluster="extraction",
        held_out=True,
        kind="generate",
        chance=5 / 24,  # as extract_kind
        generate=_extract_colours,
        templates=EXTRACT_DEFINITIONS,
    ),
    Family(
        name="remove_word",
        mixture="niv2",
        cluster="editing",
        kind="generate",
        chance=7 / 48,  # all but the last: half have one to remove, of three or four
        generate=_remove_word,
        templates=(
            "Remove the first word from the list that follows.",
            "You are given a word and a list. Write the list without the word.",
            "In this task you leave out a word of a list and keep the rest.",
            "Copy the list, but leave out the word.",
        ),
    ),
)
