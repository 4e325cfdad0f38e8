"""mini-Flan as task sources for the builder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from flan_moe.data.forms import Forms
from flan_moe.data.mini_flan import TASK_FAMILIES, group_of
from flan_moe.data.mini_flan.family import Family, Instance
from flan_moe.data.sources.task_source import TaskContent, TaskSource
from flan_moe.data.suite import EXEMPLARS, SuiteItem

PATIENCE = 5000  # draws without a new problem before a family counts as exhausted


def mini_flan_sources(
    *, examples: int, validation: int, evaluation: int, seed: int
) -> list[TaskSource]:
    """The 24 families, each with so many examples per split.

    Args:
        examples: Training examples per held-in family.
        validation: Validation examples per held-in family.
        evaluation: Evaluation questions per family; all of them are different.
        seed: Of everything random.

    Raises:
        ValueError: A number is negative, or there would be nothing to train on.
    """
    for key, value, least in (
        ("examples", examples, 1),
        ("validation", validation, 0),
        ("evaluation", evaluation, 0),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ValueError(f"{key} is {value}; expected {least} or more")
    return [
        TaskSource(
            name=family.name,
            mixture=family.mixture,
            group=group_of(family),
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


def family_forms(family: Family) -> Forms[Instance]:
    """The training forms of a family."""
    return Forms(
        task=family.name,
        mixture=family.mixture,
        templates=len(family.templates),
        key=Instance.content,
        prompt=family.prompt,
        answer=lambda instance: instance.answer,
        rationale=lambda instance: instance.rationale,
        cot=family.cot,
        under_definition=(
            {"definition_examples": partial(_under_definition, family)}
            if family.mixture == "niv2"
            else {}
        ),
    )


def _under_definition(
    family: Family, instance: Instance, template: int, drawn: Sequence[Instance]
) -> tuple[str, Sequence[Instance]]:
    # The one definition has to hold for every example under it.
    examples = [other for other in drawn if other.fields.get("kind") == instance.fields.get("kind")]
    return family.prompt(instance, template, tuple(examples)), examples


def _open(
    family: Family,
    fits: Callable[[str], bool],
    *,
    examples: int,
    validation: int,
    evaluation: int,
    seed: int,
) -> TaskContent:
    def split_examples(split: str, count: int) -> Iterable:
        instances = [family.instance(index, seed=seed, split=split) for index in range(count)]
        name = f"{seed}/{family.name}/{split}/form"
        return family_forms(family).examples(instances, seed=name, fits=fits)

    return TaskContent(
        train=split_examples("train", examples),
        validation=split_examples("validation", validation),
        items=_items(family, family.instances(seed=seed, split="eval"), evaluation),
        # Exemplars come from the validation problems, so they are never evaluation questions.
        exemplars=_items(family, family.instances(seed=seed, split="validation"), EXEMPLARS),
        kind=family.kind,
        chance=family.chance,
    )


def _items(family: Family, instances: Iterable[Instance], count: int) -> tuple[SuiteItem, ...]:
    """The first ``count`` different problems, with the wordings in turn.

    Raises:
        ValueError: The family has not so many.
    """
    items: dict[str, SuiteItem] = {}
    misses = 0
    for instance in instances:
        if len(items) == count:
            break
        misses += 1
        if misses > PATIENCE:
            raise ValueError(
                f"{count} evaluation questions per task: family {family.name!r} has no more than "
                f"about {len(items)} different ones"
            )
        if instance.content() not in items:
            misses = 0
            items[instance.content()] = SuiteItem(
                id=f"{family.name}-{len(items)}",
                input=family.prompt(instance, len(items)),
                targets=(instance.answer,),
                options=instance.options,
                rationale=instance.rationale,
                problem=instance.content(),
            )
    return tuple(items.values())
