"""Training examples from a family: which form each instance takes, and its exemplars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from flan_moe.data.example import Example
from flan_moe.data.mini_flan.family import Family, Instance, Split
from flan_moe.data.prompts import cot_prompt, cot_target, few_shot_prompt

FEW_SHOT_SHARE = 0.4  # of all examples; the rest is zero-shot
COT_SHARE = 2 / 3  # of the examples of a chain-of-thought family; the rest answers at once
UNDER_DEFINITION_SHARE = 0.5  # of few-shot niv2 examples; the rest repeats the whole prompt
MAX_SHOTS = 2


def family_examples(
    family: Family,
    count: int,
    *,
    seed: int,
    split: Split = "train",
    fits: Callable[[str], bool] = lambda prompt: True,
) -> Iterator[Example]:
    """The first ``count`` instances of a family as training examples.

    Exemplars of few-shot prompts are other instances of the same split; an instance is never its
    own exemplar. Exemplars are dropped from the end until the prompt fits.

    Args:
        family: The task family.
        count: How many examples.
        seed: Chooses instances, forms and exemplars.
        split: Which split to draw from.
        fits: Whether a few-shot prompt is short enough.
    """
    instances = [family.instance(index, seed=seed, split=split) for index in range(count)]
    for index, instance in enumerate(instances):
        rng = Random(f"{seed}/{family.name}/{split}/{index}/form")
        yield _example(family, instance, instances, index, rng, fits)


def _example(
    family: Family,
    instance: Instance,
    instances: list[Instance],
    index: int,
    rng: Random,
    fits: Callable[[str], bool],
) -> Example:
    template = index % len(family.templates)
    reasons = family.cot and rng.random() < COT_SHARE
    shots = rng.randint(1, MAX_SHOTS) if rng.random() < FEW_SHOT_SHARE else 0
    exemplars = _exemplars(instance, instances, shots, rng)
    query, target = _question(family, instance, template, reasons)
    shown = [(instance, template)]
    prompt, form = query, "zero_shot"
    if family.mixture == "niv2" and rng.random() < UNDER_DEFINITION_SHARE:
        # The one definition has to hold for every example under it.
        under = tuple(e for e in exemplars if e.fields.get("kind") == instance.fields.get("kind"))
        if under:
            prompt, form = family.prompt(instance, template, under), "definition_examples"
            shown += [(exemplar, template) for exemplar in under]
    elif exemplars:
        blocks = [(exemplar, rng.randrange(len(family.templates))) for exemplar in exemplars]
        while blocks:
            solved = [_question(family, *block, reasons) for block in blocks]
            if fits(few_shot_prompt(solved, query)):
                prompt, form = few_shot_prompt(solved, query), "few_shot"
                shown += blocks
                break
            blocks.pop()
    return Example(
        task=family.name,
        mixture=family.mixture,
        template=f"{form}{'_cot' if reasons else ''}/{template}",
        prompt=prompt,
        target=target,
        meta={"shown": [family.prompt(*problem) for problem in shown]},
    )


def _exemplars(
    instance: Instance, instances: list[Instance], shots: int, rng: Random
) -> list[Instance]:
    """Up to ``shots`` other problems; a draw that meets the same problem again is left out."""
    drawn = [rng.choice(instances) for _ in range(shots)]
    seen, kept = {instance.content()}, []
    for exemplar in drawn:
        if exemplar.content() not in seen:
            seen.add(exemplar.content())
            kept.append(exemplar)
    return kept


def _question(family: Family, instance: Instance, template: int, reasons: bool) -> tuple[str, str]:
    prompt = family.prompt(instance, template)
    if not reasons:
        return prompt, instance.answer
    if instance.rationale is None:
        raise ValueError(f"{family.name}: an instance has no rationale: {instance}")
    return cot_prompt(prompt), cot_target(instance.rationale, instance.answer)
