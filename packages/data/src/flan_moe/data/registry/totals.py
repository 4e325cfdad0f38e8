"""How many tasks each mixture has, here and in the paper, and why the numbers differ."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from flan_moe.data.registry.registry import Registry
from flan_moe.data.registry.task import COLLECTION

# Flan-MoE and Flan-PaLM: Muffin 80, T0-SF 193, NIV2 1,554, CoT 9; 1,836 in all.
PAPER = {"muffin": 80, "t0_sf": 193, "niv2": 1554, "cot": 9}

NOTES = {
    "muffin": (
        "72 of FLAN 2021, 3 dialog and 5 program synthesis tasks. The papers also speak of 62 and "
        "26 of dialog and program synthesis, 88 in all; no published list has those. Seven of the "
        "80 cannot be generated from the public release."
    ),
    "niv2": (
        "The published table of the collection lists 1,556 tasks: all 1,613 of Natural "
        "Instructions v2.8 without the 57 made from MMLU. Which two of them the papers do not "
        "count cannot be told from anything published. (The paper is also said to have left out "
        "44 tasks for MMLU; the code leaves out 57.)"
    ),
}


@dataclass(frozen=True, kw_only=True)
class MixtureTotal:
    """Number of tasks of one mixture.

    Attributes:
        mixture: Which; ``"all"`` for their sum.
        tasks: Registered as part of the collection.
        released: Of those, that the public release can generate.
        paper: That the papers state.
        samples: Sum of known sizes.
        note: Why the numbers differ, or need explaining; empty if they do not.
    """

    mixture: str
    tasks: int
    released: int
    paper: int
    samples: int
    note: str = ""


def mixture_totals(registry: Registry) -> tuple[MixtureTotal, ...]:
    """Totals of the four mixtures, then of all."""
    tasks = [task for task in registry if task.part == COLLECTION]
    counts = Counter(task.mixture for task in tasks)
    released = Counter(task.mixture for task in tasks if task.released)
    samples: Counter[str] = Counter()
    for task in tasks:
        samples[task.mixture] += task.size or 0
    rows = [
        MixtureTotal(
            mixture=name,
            tasks=counts[name],
            released=released[name],
            paper=paper,
            samples=samples[name],
            note=NOTES.get(name, ""),
        )
        for name, paper in PAPER.items()
    ]
    total = MixtureTotal(
        mixture="all",
        tasks=len(tasks),
        released=released.total(),
        paper=sum(PAPER.values()),
        samples=samples.total(),
    )
    return (*rows, total)
