"""One registered task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flan_moe.data.json_types import check_types
from flan_moe.data.registry.evaluation_sets import Overlap

COLLECTION, INVERSION, EXCLUDED = "collection", "inversion", "excluded"
PARTS = (COLLECTION, INVERSION, EXCLUDED)


@dataclass(frozen=True, kw_only=True)
class Template:
    """A promptsource template: the rows of ``dataset``/``subset`` rendered by ``template``."""

    dataset: str
    subset: str | None = None
    template: str


@dataclass(frozen=True, kw_only=True)
class RegisteredTask:
    """What is known of a task without its data.

    Attributes:
        name: As in the code of the Flan collection, or the file of Natural Instructions.
        mixture: ``muffin``, ``t0_sf``, ``niv2`` or ``cot``, as shards are stored.
        sub_mixture: ``flan2021``, ``dialog``, ``program_synthesis``, ``t0``, ``niv2`` or ``cot``.
        part: ``collection`` for the tasks that the paper counts, ``inversion`` for those made from
            one of them by exchanging input and answer, ``excluded`` for Natural Instructions tasks
            that the collection leaves out.
        types: What is asked for; of several, each.
        source: Data set that it is made from.
        aliases: Other spellings, in code, tables and templated dumps.
        licences: Of the data set, as its publishers or Natural Instructions state; empty if
            unknown.
        languages: Of inputs and outputs; for the few Natural Instructions tasks that the index
            knows by name only, as the collection's table has them, with that of the definition.
        size: Number of training samples in one setting; None if unknown.
        split: Natural Instructions' default-track split; FLAN trains on all three.
        form: T0-SF's kind of prompt.
        template: T0-SF's promptsource template.
        twin: For an inversion, the task that it is made from.
        released: Whether the public release of the collection can generate it.
        overlaps: Evaluation sets that it shares data with.
    """

    name: str
    mixture: str
    sub_mixture: str
    part: str = COLLECTION
    types: tuple[str, ...] = ()
    source: str
    aliases: tuple[str, ...] = ()
    licences: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    size: int | None = None
    split: str | None = None
    form: str | None = None
    template: Template | None = None
    twin: str | None = None
    released: bool = True
    overlaps: tuple[Overlap, ...] = ()

    @property
    def spellings(self) -> tuple[str, ...]:
        """Its name, then its aliases."""
        return (self.name, *self.aliases)

    @property
    def provenance(self) -> dict[str, str]:
        """Source, type and licence as text, to be stored with data; without what is not known."""
        values = {
            "source": self.source,
            "type": "; ".join(self.types),
            "licence": "; ".join(self.licences),
        }
        return {key: value for key, value in values.items() if value}


_LISTS = ("types", "aliases", "licences", "languages")


def task_from_record(record: Mapping[str, Any], overlaps: tuple[Overlap, ...]) -> RegisteredTask:
    """A task from a line of the packaged table.

    Raises:
        TypeError: A value is missing, unknown or of the wrong type; names the key.
    """
    values = dict(record)
    hints = dict.fromkeys(("name", "mixture", "sub_mixture", "source"), str)
    hints |= {key: tuple[str, ...] for key in _LISTS if key in values}
    hints |= {key: str for key in ("part", "split", "form", "twin") if key in values}
    hints |= {"size": int} if "size" in values else {}
    check_types(values, hints)
    values |= {key: tuple(values[key]) for key in _LISTS if key in values}
    values["released"] = not values.pop("unreleased", False)
    if "template" in values:
        values["template"] = Template(**values["template"])
    return RegisteredTask(**values, overlaps=overlaps)
