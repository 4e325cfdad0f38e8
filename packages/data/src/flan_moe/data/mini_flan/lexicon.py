"""The few hundred words of mini-Flan, and the grammar they need."""

from __future__ import annotations

from collections.abc import Sequence

NAMES = ("Anna", "Ben", "Carl", "Dora", "Emma", "Finn", "Gina", "Hugo", "Ivan", "Lena")
PLACES = ("kitchen", "garden", "garage", "office", "bedroom", "hall", "attic", "cellar")
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

# Kind of thing: (its plural, the things).
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "animal": ("animals", ("cat", "dog", "cow", "horse", "duck", "goat", "lion", "frog")),
    "food": ("foods", ("bread", "soup", "cake", "rice", "cheese", "honey", "pasta", "butter")),
    "colour": ("colours", ("red", "blue", "green", "yellow", "black", "white", "brown", "pink")),
    "garment": ("garments", ("hat", "coat", "shirt", "shoe", "boot", "glove", "sock", "belt")),
    "tool": ("tools", ("hammer", "saw", "spade", "drill", "axe", "rake", "brush", "ladder")),
}
WORDS = tuple(word for _, words in KINDS.values() for word in words)

COUNTABLES = ("apple", "book", "coin", "card", "ball", "pen", "egg", "stone")

_KIND_OF = {word: kind for kind, (_, words) in KINDS.items() for word in words}


def kind_of(word: str) -> str:
    """The kind that a word of `WORDS` belongs to."""
    return _KIND_OF[word]


def plural(noun: str) -> str:
    """The plural of a noun of this lexicon; all are regular."""
    return noun + ("es" if noun.endswith("sh") else "s")


def counted(number: int, noun: str) -> str:
    """The number and the noun, in the plural if it must be."""
    return f"{number} {noun if number == 1 else plural(noun)}"


def article(noun: str) -> str:
    """The noun with "a" or "an"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def listed(items: Sequence[str]) -> str:
    """Items joined with commas and a last "and"."""
    if len(items) == 1:
        return items[0]
    return ", ".join(items[:-1]) + " and " + items[-1]
