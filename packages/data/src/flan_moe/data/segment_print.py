"""A packed row as lines of text: its segments marked, its padding and fill told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

RULE = "-" * 80
BAR = 64
_MARKS = "123456789abcdefghijklmnopqrstuvwxyz"
_PADDING = "."
_COLOURS = (36, 33, 35, 32, 34, 31)  # cyan, yellow, magenta, green, blue, red


@dataclass(frozen=True, kw_only=True)
class ShownSegment:
    """One example of a row.

    Attributes:
        title: Where it comes from; may be empty.
        source: Decoded input.
        target: Decoded target.
        tokens: Of input and target.
    """

    title: str
    source: str
    target: str
    tokens: tuple[int, int]


def row_lines(
    number: int, segments: Sequence[ShownSegment], budget: tuple[int, int], *, colour: bool
) -> list[str]:
    """A heading, a bar for encoder and decoder, and a line per segment.

    Control characters of the texts are escaped, so that data cannot speak to the terminal.

    Args:
        number: Of the row.
        segments: In order.
        budget: Encoder and decoder length of the row.
        colour: Whether to colour segments for a terminal.
    """
    lines = [RULE, f"row {number}", RULE]
    for side, name in ((0, "encoder"), (1, "decoder")):
        sizes = [segment.tokens[side] for segment in segments]
        padding = budget[side] - sum(sizes)
        bar = _bar(sizes, budget[side], colour)
        fill = sum(sizes) / budget[side]
        lines.append(
            f"{name} |{bar}| {sum(sizes)} of {budget[side]} tokens, {padding} padding ({fill:.1%})"
        )
    for index, segment in enumerate(segments):
        title = f"{segment.title} " if segment.title else ""
        tokens = f"({segment.tokens[0]} -> {segment.tokens[1]}) "
        text = f"[{index + 1}] {title}{tokens}{segment.source!r} => {segment.target!r}"
        lines.append(_painted(text, index, colour))
    return lines


def _bar(sizes: Sequence[int], budget: int, colour: bool) -> str:
    """`BAR` characters, each the segment that holds the token in its middle."""
    ends, total = [], 0
    for size in sizes:
        total += size
        ends.append(total)
    cells = []
    for cell in range(BAR):
        token = (cell + 0.5) * budget / BAR
        owner = next((index for index, end in enumerate(ends) if token < end), None)
        if owner is None:
            cells.append(_PADDING)
        else:
            cells.append(_painted(_MARKS[owner % len(_MARKS)], owner, colour))
    return "".join(cells)


def _painted(text: str, index: int, colour: bool) -> str:
    return f"\x1b[{_COLOURS[index % len(_COLOURS)]}m{text}\x1b[0m" if colour else text
