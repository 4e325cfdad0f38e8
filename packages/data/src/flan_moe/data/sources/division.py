"""Which records of a raw task train, which validate and which are asked in evaluation."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from flan_moe.data.forms import FormShares
from flan_moe.data.readers import RawTask, Record
from flan_moe.data.suite import EXEMPLARS


@dataclass(frozen=True, kw_only=True)
class RawOptions:
    """How raw tasks are divided.

    Attributes:
        evaluation: Evaluation questions per task at most.
        validation: Validation problems per held-in task at most.
        examples: Training examples per task at most; None for all.
        seed: Of every choice.
        shares: Mixture, then how often its tasks take each prompt form; mixtures that are not named
            have the shares of the Flan collection.
    """

    evaluation: int = 50
    validation: int = 20
    examples: int | None = 5000
    seed: int = 0
    shares: Mapping[str, FormShares] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: One is out of range; names it.
        """
        for key, least in (("evaluation", 0), ("validation", 0), ("examples", 1), ("seed", 0)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise ValueError(f"{key} is {value}; expected {least} or more")


@dataclass(frozen=True, kw_only=True)
class Divided:
    """The records of one task by use; no problem is in two of the first three."""

    train: Sequence[Record]
    validation: Sequence[Record]
    evaluation: Sequence[Record]
    exemplars: Sequence[Record]
    dropped: Counter[str]


def divide(task: RawTask, options: RawOptions, *, by_file_order: bool, held_out: bool) -> Divided:
    """Divide a task's records into training, validation and evaluation, exemplars apart.

    Records with the same input are one problem and stay together. Evaluation takes the first
    problems (in the file's order for Natural Instructions, where the official evaluation instances
    are the first; in the order of a hash elsewhere), at most a quarter of a held-in task.

    Args:
        task: What was read.
        options: Numbers and seed.
        by_file_order: Whether the file's order decides.
        held_out: Whether the task is only evaluated; all but the exemplars may then be questions.
    """
    problems: dict[str, list[Record]] = {}
    for record in task.records:
        problems.setdefault(record.input, []).append(record)
    inputs = list(problems)
    if not by_file_order:
        inputs.sort(key=lambda text: hashlib.sha256(f"{options.seed}/{text}".encode()).digest())
    quarter = len(inputs) // 4
    most = max(len(inputs) - EXEMPLARS, 1) if held_out else quarter
    num_evaluation = min(options.evaluation, most)
    num_validation = min(max(options.validation, EXEMPLARS), quarter)
    evaluation = [problems[text][0] for text in inputs[:num_evaluation]]
    rest = inputs[num_evaluation:]
    validation = [record for text in rest[:num_validation] for record in problems[text]]
    train = [record for text in rest[num_validation:] for record in problems[text]]
    dropped: Counter[str] = Counter()
    if held_out:
        train = []
    elif options.examples is not None and len(train) > options.examples:
        dropped["over the number of examples per task"] = len(train) - options.examples
        chosen = Random(f"{options.seed}/{task.name}").sample(range(len(train)), options.examples)
        train = [train[index] for index in sorted(chosen)]
    firsts: dict[str, Record] = {}
    for record in [*unasked_examples(task, evaluation), *validation]:
        firsts.setdefault(record.input, record)
    return Divided(
        train=train,
        validation=validation[: options.validation],
        evaluation=evaluation,
        exemplars=list(firsts.values())[:EXEMPLARS],
        dropped=dropped,
    )


def unasked_examples(task: RawTask, evaluation: Iterable[Record]) -> list[Record]:
    """The solved examples of a task's definition, without those that are evaluation problems."""
    asked = {record.input for record in evaluation}
    return [Record(input=x, targets=(y,)) for x, y in task.examples if x not in asked]
