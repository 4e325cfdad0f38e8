"""Which tasks a build holds out: names, lists in files, and what overlaps with evaluation sets."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def held_out_names(held_out: Iterable[str]) -> tuple[set[str], set[str]]:
    """The tasks that are named, and those that ``@FILE`` and ``@SET`` entries stand for.

    Args:
        held_out: Names of tasks; ``@FILE`` for the names in a file, separated by blanks or line
            ends; ``@SET`` for every spelling of the tasks that overlap with an evaluation set. A
            file that is called like a set goes first.

    Raises:
        ValueError: An entry is neither a file nor a set, or a file is not UTF-8; names it.
    """
    named: set[str] = set()
    listed: set[str] = set()
    for entry in held_out:
        if not entry.startswith("@"):
            named.add(entry)
        elif Path(entry[1:]).is_file():
            listed.update(_listed(Path(entry[1:])))
        else:
            listed.update(_overlapping(entry))
    return named, listed


def _listed(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").split()
    except UnicodeDecodeError as error:
        raise ValueError(f"held_out: {file}: not UTF-8: {error}") from error


def _overlapping(entry: str) -> list[str]:
    from flan_moe.data.registry import load_registry

    try:
        found = load_registry().overlapping(entry[1:])
    except ValueError as error:
        raise ValueError(f"held_out: {entry}: no such file, and {error}") from None
    return [spelling for task, _ in found for spelling in task.spellings]
