"""mini-Flan as task sources for the builder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from flan_moe.data.mini_flan import TASK_FAMILIES
from flan_moe.data.mini_flan.examples import family_examples
from flan_moe.data.mini_flan.family import Family, Instance
from flan_moe.data.suite import SuiteItem
from flan_moe.data.task_source import TaskContent, TaskSource

EXEMPLARS = 8


def mini_flan_sources(
    *, examples: int, validation: int, evaluation: int, seed: int
) -> list[TaskSource]:
    """The 24 families, each with so many examples per split.

    Args:
        examples: Training examples per held-in family.
        validation: Validation examples per held-in family.
        evaluation: Evaluation questions per family; all of them are different.
        seed: Of everything random.
    """
    return [
        TaskSource(
            name=family.name,
            mixture=family.mixture,
            group="held_out" if family.held_out else "held_in",
            cot=family.cot,
            open=partial(
                _open,
                family,
                examples=0 if family.held_out else examples,
                validation=0 if family.held_out else validation,
                evaluation=evaluation,
                seed=seed,
            ),
        )
        for family in TASK_FAMILIES
    ]


def _open(
    family: Family,
    fits: Callable[[str], bool],
    *,
    examples: int,
    validation: int,
    evaluation: int,
    seed: int,
) -> TaskContent:
    return TaskContent(
        train=family_examples(family, examples, seed=seed, split="train", fits=fits),
        validation=family_examples(family, validation, seed=seed, split="validation", fits=fits),
        items=_items(family, family.instances(seed=seed, split="eval"), evaluation),
        # Exemplars come from the validation problems, so they are never evaluation questions.
        exemplars=_items(family, family.instances(seed=seed, split="validation"), EXEMPLARS),
        kind=family.kind,
        chance=family.chance,
    )


def _items(family: Family, instances: Iterable[Instance], count: int) -> tuple[SuiteItem, ...]:
    """The first ``count`` different problems, with the wordings in turn."""
    items: dict[str, SuiteItem] = {}
    for instance in instances:
        if len(items) == count:
            break
        if instance.content() not in items:
            items[instance.content()] = SuiteItem(
                id=f"{family.name}-{len(items)}",
                input=family.prompt(instance, len(items)),
                target=instance.answer,
                options=instance.options,
                rationale=instance.rationale,
            )
    return tuple(items.values())
