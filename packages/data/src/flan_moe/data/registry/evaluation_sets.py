"""Evaluation sets, and which training tasks share data with them (``overlaps.yaml``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from flan_moe.data.yaml_file import Document, read_yaml

EVALUATION = "evaluation"
"""In ``held_out: ["@evaluation"]``: every set."""

TRAINING_SPLIT, SAME_DATA = "training_split", "same_data"
KINDS = (TRAINING_SPLIT, SAME_DATA)


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Why a task is not clean for an evaluation set.

    Attributes:
        set: Name of the evaluation set.
        kind: ``training_split``: the task trains on the split that is meant for it, so the set is
            held in but its questions are not shown. ``same_data``: made from the same data without
            regard to splits, or from all of it; questions of the set may be, or are, among it.
        reason: In words.
    """

    set: str
    kind: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """An evaluation set.

    Attributes:
        name: Its name here.
        title: What it is.
        aliases: Other names for it.
        overlaps: Shell pattern of task names, then why those overlap. The first match counts.
    """

    name: str
    title: str
    aliases: tuple[str, ...] = ()
    overlaps: tuple[tuple[str, Overlap], ...] = ()


def load_evaluation_sets() -> tuple[EvaluationSet, ...]:
    """The packaged sets.

    Raises:
        ValueError: The packaged file is damaged; names file, line and key.
    """
    file = files("flan_moe.data.registry") / "overlaps.yaml"
    document = read_yaml(file.read_text(encoding="utf-8"), file.name)
    tree = document.mapping(())
    return tuple(_evaluation_set(document, name) for name in tree)


def _evaluation_set(document: Document, name: str) -> EvaluationSet:
    values = document.mapping((name,), allowed=("title", "aliases", "tasks"))
    overlaps = []
    for number in range(len(document.sequence((name, "tasks")))):
        place = (name, "tasks", number)
        entry: Mapping[str, Any] = document.mapping(place, allowed=("names", "kind", "reason"))
        kind = document.text((*place, "kind"))
        if kind not in KINDS:
            raise document.error((*place, "kind"), f"is {kind!r}; expected {' or '.join(KINDS)}")
        reason = document.text((*place, "reason"))
        overlap = Overlap(set=name, kind=kind, reason=reason)
        names = document.texts((*place, "names")) if "names" in entry else ()
        overlaps += [(pattern, overlap) for pattern in names]
    return EvaluationSet(
        name=name,
        title=document.text((name, "title")),
        aliases=document.texts((name, "aliases")) if "aliases" in values else (),
        overlaps=tuple(overlaps),
    )
