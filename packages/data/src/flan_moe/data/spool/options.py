"""How templated rows are sorted."""

from __future__ import annotations

from dataclasses import dataclass, field, is_dataclass
from typing import Any

from flan_moe.data.readers.layouts import TRAIN, FlanNaming, TaskNaming

VERSION = 2  # of the spool's files


@dataclass(frozen=True, kw_only=True)
class IngestOptions:
    """How to sort.

    Attributes:
        naming: A row's labels to its task. With several workers it travels to other processes: a
            function of a module or an object of a class, not a lambda.
        splits: Rows of other splits are left out.
        workers: Processes; 1 for this one alone, None for one per CPU.
    """

    naming: TaskNaming = field(default_factory=FlanNaming)
    splits: tuple[str, ...] = (TRAIN,)
    workers: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: There are no workers, or no splits.
        """
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers is {self.workers}; expected 1 or more")
        if not self.splits:
            raise ValueError("splits is empty; expected at least one, such as 'train'")

    def record(self) -> dict[str, Any]:
        """What the rows of a part depend on."""
        naming = self.naming
        name = getattr(naming, "__qualname__", type(naming).__qualname__)
        module = getattr(naming, "__module__", type(naming).__module__)
        told = repr(naming) if is_dataclass(naming) else name
        return {
            "version": VERSION,
            "naming": f"{module}: {told}",
            "splits": sorted(self.splits),
        }
