"""What a builder asks of a source of data: tasks that can be opened, again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flan_moe.data.example import Example
from flan_moe.data.suite import SuiteItem

# Per-task caps of examples-proportional mixing, as released with the Flan collection
# (google-research/FLAN, flan/v2/mixtures.py, DEFAULT_MIXTURE_MAX_EXAMPLES).
MIXTURE_CAPS: Mapping[str, int] = {"muffin": 30_000, "t0_sf": 20_000, "cot": 100_000, "niv2": 5_000}
DEFAULT_CAP = 30_000


@dataclass(frozen=True, kw_only=True)
class TaskContent:
    """One opened task.

    Attributes:
        train: Training examples; empty for a held-out task.
        validation: Examples of the same forms, disjoint from training.
        items: Evaluation questions.
        exemplars: Solved problems for few-shot evaluation prompts.
        kind: ``"generate"`` or ``"multiple_choice"``.
        chance: Score of guessing without solving.
        dropped: Reason, then the number of raw records left out.
    """

    train: Iterable[Example]
    validation: Iterable[Example]
    items: tuple[SuiteItem, ...]
    exemplars: tuple[SuiteItem, ...]
    kind: str
    chance: float
    dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TaskSource:
    """One task that can be built.

    Attributes:
        name: Unique in the data set; also a file name.
        mixture: Where its shards go.
        group: As in `SuiteTask`.
        cot: Whether its problems carry rationales.
        open: Reads or generates the task. Takes the test that a few-shot prompt is short enough;
            with the same test it gives the same content every time.
        inputs: The raw files that it reads. Their hashes go into the provenance, and a stopped
            build is only continued while they are the same.
        provenance: Where the task comes from, for people: ``"licence"``, ``"source"``, ``"type"``
            and the like, where known.
    """

    name: str
    mixture: str
    group: str
    cot: bool
    open: Callable[[Callable[[str], bool]], TaskContent] = field(repr=False)
    inputs: tuple[Path, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
