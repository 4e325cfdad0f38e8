"""Looking up registered tasks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.resources import files

from flan_moe.data.registry.evaluation_sets import (
    EVALUATION,
    EvaluationSet,
    Overlap,
    load_evaluation_sets,
)
from flan_moe.data.registry.task import COLLECTION, RegisteredTask, task_from_record
from flan_moe.data.suggestion import suggestion

UNKNOWN = "unknown"
"""As a filter on licences: tasks whose licence is not known."""


@dataclass(frozen=True, kw_only=True)
class Registry:
    """Tasks by name, and the evaluation sets that they overlap with.

    Attributes:
        tasks: In order of mixture, then as listed there.
        sets: In the order of the packaged file.
    """

    tasks: tuple[RegisteredTask, ...]
    sets: tuple[EvaluationSet, ...]
    _by_spelling: Mapping[str, RegisteredTask] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Index the spellings.

        Raises:
            ValueError: Two tasks share a spelling.
        """
        index: dict[str, RegisteredTask] = {}
        for task in self.tasks:
            for key in dict.fromkeys(map(_key, task.spellings)):
                if key in index:
                    raise ValueError(
                        f"registry: {task.name!r} and {index[key].name!r} share the name {key!r}"
                    )
                index[key] = task
        object.__setattr__(self, "_by_spelling", index)

    def __iter__(self) -> Iterator[RegisteredTask]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    def find(self, name: str) -> RegisteredTask | None:
        """The task that a name or alias means; None if none does.

        Punctuation does not count, so ``ai2_arc_ARC_Easy_1_0_0`` is ``ai2_arc/ARC-Easy:1.0.0``.
        """
        return self._by_spelling.get(_key(name))

    def provenance(self, name: str) -> dict[str, str]:
        """Source, type and licence of a task as text; empty for one that is not registered."""
        task = self.find(name)
        return {} if task is None else task.provenance

    def __getitem__(self, name: str) -> RegisteredTask:
        task = self.find(name)
        if task is None:
            raise KeyError(f"no task {name!r} in the registry{suggestion(name, self._names())}")
        return task

    def select(
        self,
        *,
        parts: Iterable[str] = (COLLECTION,),
        mixtures: Iterable[str] = (),
        types: Iterable[str] = (),
        sources: Iterable[str] = (),
        licences: Iterable[str] = (),
        languages: Iterable[str] = (),
        splits: Iterable[str] = (),
        overlapping: Iterable[str] = (),
        not_overlapping: Iterable[str] = (),
    ) -> tuple[RegisteredTask, ...]:
        """Tasks that pass every filter given; one passes a filter if any of its values fits.

        Args:
            parts: ``collection``, ``inversion``, ``excluded``.
            mixtures: Mixtures or sub-mixtures.
            types: Shell patterns without regard to case, as are those of the next three.
            sources: Of the data set.
            licences: ``"unknown"`` stands for tasks whose licence is not known.
            languages: A task has one of them among its own.
            splits: Of Natural Instructions.
            overlapping: Evaluation sets; ``"evaluation"`` stands for all.
            not_overlapping: The same.

        Raises:
            ValueError: A mixture, part, split or evaluation set is unknown; names it.
        """
        parts, mixtures, splits = tuple(parts), tuple(mixtures), tuple(splits)
        known_mixtures = {t.mixture for t in self} | {t.sub_mixture for t in self}
        _check_known("part", parts, {task.part for task in self})
        _check_known("mixture", mixtures, known_mixtures)
        _check_known("split", splits, {task.split for task in self if task.split})
        wanted = frozenset(name for given in overlapping for name in self.set_names(given))
        refused = frozenset(name for given in not_overlapping for name in self.set_names(given))
        types, sources = tuple(types), tuple(sources)
        licences, languages = tuple(licences), tuple(languages)
        return tuple(
            task
            for task in self
            if task.part in parts
            and (not mixtures or task.mixture in mixtures or task.sub_mixture in mixtures)
            and (not splits or task.split in splits)
            and _fits(task.types, types)
            and _fits((task.source,), sources)
            and _fits(task.licences or (UNKNOWN,), licences)
            and _fits(task.languages, languages)
            and (not wanted or any(overlap.set in wanted for overlap in task.overlaps))
            and not any(overlap.set in refused for overlap in task.overlaps)
        )

    def set_names(self, name: str) -> tuple[str, ...]:
        """The evaluation sets that a name means: one by name or alias, or all.

        Raises:
            ValueError: None is called so.
        """
        if name == EVALUATION:
            return tuple(each.name for each in self.sets)
        for each in self.sets:
            if name in (each.name, *each.aliases):
                return (each.name,)
        known = [EVALUATION, *(alias for each in self.sets for alias in (each.name, *each.aliases))]
        raise ValueError(
            f"no evaluation set {name!r}{suggestion(name, known)}; expected one of "
            f"{', '.join(known)}"
        )

    def overlapping(self, name: str) -> tuple[tuple[RegisteredTask, Overlap], ...]:
        """Tasks of any part that overlap with an evaluation set, and why; one reason each.

        Raises:
            ValueError: The set is unknown.
        """
        names = self.set_names(name)
        return tuple(
            (task, overlap)
            for task in self
            for overlap in [each for each in task.overlaps if each.set in names][:1]
        )

    def _names(self) -> list[str]:
        return [spelling for task in self for spelling in task.spellings]


def load_registry() -> Registry:
    """The packaged registry.

    Raises:
        ValueError: A packaged file is damaged; names file and line.
    """
    sets = load_evaluation_sets()
    patterns = [entry for each in sets for entry in each.overlaps]
    unused = {pattern for pattern, _ in patterns}
    file = files("flan_moe.data.registry") / "tasks.jsonl"
    tasks = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            found: dict[str, Overlap] = {}
            for pattern, overlap in patterns:
                if fnmatchcase(record["name"], pattern):
                    found.setdefault(overlap.set, overlap)
                    unused.discard(pattern)
            tasks.append(task_from_record(record, tuple(found.values())))
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{file.name}:{number}: damaged registry: {error}") from error
    if unused:
        raise ValueError(f"overlaps.yaml: {min(unused)!r} matches no task")
    return Registry(tasks=tuple(tasks), sets=sets)


def _key(name: str) -> str:
    return re.sub(r"[^0-9a-z]+", "_", name.lower())


def _fits(values: Iterable[str], patterns: tuple[str, ...]) -> bool:
    if not patterns:
        return True
    lowered = [value.lower() for value in values]
    return any(fnmatchcase(value, pattern.lower()) for value in lowered for pattern in patterns)


def _check_known(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    known = sorted(known)
    for name in names:
        if name not in known:
            raise ValueError(
                f"no {what} {name!r}{suggestion(name, known)}; expected one of {', '.join(known)}"
            )
