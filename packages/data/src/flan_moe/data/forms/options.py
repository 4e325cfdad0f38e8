"""How answer options are listed below a question: in one fixed form, or in drawn ones.

After google-research/FLAN, flan/v2 (options in non-deterministic form): a random heading, item
prefix and item end. Where the prefixes tell the items apart they are labels, and the label is what
the target becomes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

HEADINGS = (
    "Options:",
    "OPTIONS:",
    "Choices:",
    "Possible answers:",
    "Answer options:",
    "Choose one:",
    "Pick one of these:",
    "Candidates:",
    "The answer is one of:",
    "Select from the following.",
    "Your choices are",
    "Available answers:",
    "Alternatives:",
    "What to choose from:",
    "Available options:",
    "",
)
ENDS = ("", "", ";", ".")
BULLETS = ("- ", "* ", "+ ", "-- ", "> ", "• ")
MOST_LETTERS = 26


@dataclass(frozen=True)
class Labels:
    """Item prefixes that tell the items apart.

    Attributes:
        kind: What counts: ``"A"``, ``"a"`` or ``"1"``.
        form: Around what counts, with the place ``#``.
        name: How a target names an item, with the place ``#``.
    """

    kind: str
    form: str
    name: str


LABELS = (
    Labels("A", "#. ", "#"),
    Labels("A", "#) ", "#"),
    Labels("A", "(#) ", "(#)"),
    Labels("A", "[#] ", "[#]"),
    Labels("A", "#: ", "#"),
    Labels("a", "#. ", "#"),
    Labels("a", "#) ", "#"),
    Labels("a", "(#) ", "(#)"),
    Labels("1", "#. ", "#"),
    Labels("1", "#) ", "#"),
    Labels("1", "(#) ", "(#)"),
    Labels("1", "#: ", "#"),
)


@dataclass(frozen=True, kw_only=True)
class OptionStyle:
    """One way to list options.

    Attributes:
        heading: Line above the items; empty for none.
        bullet: Prefix of every item, where there are no labels.
        labels: Prefixes that tell the items apart.
        end: After every item.
    """

    heading: str = "Options:"
    bullet: str = "- "
    labels: Labels | None = None
    end: str = ""

    def listing(self, options: Sequence[str]) -> str:
        """The heading and the items, one on a line."""
        lines = [self.heading] if self.heading else []
        for number, option in enumerate(options):
            prefix = self.bullet
            if self.labels is not None:
                prefix = self.labels.form.replace("#", _count(self.labels.kind, number))
            lines.append(f"{prefix}{option}{self.end}")
        return "\n".join(lines)

    def target(self, answer: str, options: Sequence[str] | None) -> str:
        """The answer, or its label where the items have labels and it is one of them."""
        if self.labels is None or options is None or answer not in options:
            return answer
        return self.labels.name.replace("#", _count(self.labels.kind, options.index(answer)))


FIXED = OptionStyle()


def drawn_style(rng: Random, count: int) -> OptionStyle:
    """A random way to list up to ``count`` options."""
    heading, end = rng.choice(HEADINGS), rng.choice(ENDS)
    labels = [one for one in LABELS if one.kind == "1" or count <= MOST_LETTERS]
    prefix: str | Labels = rng.choice([*BULLETS, *labels])
    if isinstance(prefix, Labels):
        return OptionStyle(heading=heading, labels=prefix, end=end)
    return OptionStyle(heading=heading, bullet=prefix, end=end)


_PLACE = re.compile(r"\n*\{options\}")


def without_options(wording: str) -> str:
    """A wording without its ``{options}`` place and the line breaks before it."""
    return _PLACE.sub("", wording)


def _count(kind: str, number: int) -> str:
    return str(number + 1) if kind == "1" else chr(ord(kind) + number)
