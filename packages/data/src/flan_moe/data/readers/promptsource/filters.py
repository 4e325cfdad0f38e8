"""The filters that promptsource adds to Jinja; ``choice`` is in the sandbox, for its seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any


def most_frequent(items: Sequence[Any]) -> list[Any] | None:
    """All items that occur most often, in the order in which they first occur; None of none."""
    if not items:
        return None
    counts = Counter(items)
    most = max(counts.values())
    return [item for item, count in counts.items() if count == most]


def highlight(text: str) -> str:
    """The text with the mark-up that promptsource's own viewer shows values in."""
    return f"<span style='color: #F08080'>{text}</span>"
