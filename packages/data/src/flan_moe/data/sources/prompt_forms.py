"""The prompt forms of raw tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from flan_moe.data.forms import Forms, FormShares, Style, UnderDefinition, shares_of
from flan_moe.data.forms.wordings import WORDINGS
from flan_moe.data.prompts import COT_CUES, DEFINITION_LAYOUTS, definition_prompt
from flan_moe.data.readers import RawTask, Record
from flan_moe.data.sources.division import unasked_examples

EXPLAINED_LAYOUTS = 3  # every so many wordings of a definition show why its examples are right


def task_forms(
    task: RawTask,
    mixture: str,
    evaluation: Iterable[Record],
    shares: Mapping[str, FormShares] | None = None,
) -> Forms[Record]:
    """The training forms of a raw task.

    Args:
        task: Gives the definition and its examples, or the kind of its problems.
        mixture: Where it belongs.
        evaluation: Problems that may not be shown under the definition.
        shares: Mixture, then how often its forms are taken; None for those of Flan.
    """
    chosen = shares_of(mixture, shares)
    if task.definition is not None:
        return _defined_forms(task, mixture, evaluation, chosen)
    wordings = WORDINGS[task.wordings or "question"]

    def worded(record: Record, style: Style) -> str:
        fields = dict(record.fields) or {"question": record.input}
        return wordings.prompt(fields, options(record), style)

    def options(record: Record) -> Sequence[str] | None:
        return None if task.options_listed else record.options

    return Forms(
        task=task.name,
        mixture=mixture,
        templates=len(wordings.zero_shot),
        key=lambda record: record.input,
        prompt=lambda record, template: worded(
            record, Style(template=template % len(wordings.zero_shot))
        ),
        answer=lambda record: record.targets[0],
        rationale=lambda record: record.rationale,
        cot=mixture == "cot",
        cues=COT_CUES,
        options=options,
        worded=worded,
        shares=chosen,
    )


def _defined_forms(
    task: RawTask, mixture: str, evaluation: Iterable[Record], shares: FormShares
) -> Forms[Record]:
    """A definition, perhaps solved examples, and the problem."""
    given = unasked_examples(task, evaluation)
    why = dict(zip((text for text, _ in task.examples), task.explanations, strict=False))

    def prompt(
        record: Record, template: int, shown: Sequence[Record] = (), *, explained: bool = False
    ) -> str:
        pairs = [(example.input, example.targets[0]) for example in shown]
        explanations = [why.get(example.input, "") for example in shown] if explained else ()
        return definition_prompt(
            task.definition or "",
            record.input,
            pairs,
            layout=template,
            explanations=explanations,
        )

    def with_positives(
        record: Record, template: int, drawn: Sequence[Record]
    ) -> tuple[str, Sequence[Record]]:
        shown = [example for example in given if example.input != record.input][: len(drawn)]
        explained = template % EXPLAINED_LAYOUTS == EXPLAINED_LAYOUTS - 1
        return prompt(record, template, shown, explained=explained), shown

    def with_instances(
        record: Record, template: int, drawn: Sequence[Record]
    ) -> tuple[str, Sequence[Record]]:
        return prompt(record, template, drawn), drawn

    under: dict[str, UnderDefinition] = {"definition_instances": with_instances}
    if given:
        under["definition_examples"] = with_positives
    return Forms(
        task=task.name,
        mixture=mixture,
        templates=len(DEFINITION_LAYOUTS),
        key=lambda record: record.input,
        prompt=prompt,
        answer=lambda record: record.targets[0],
        under_definition=under,
        shares=shares,
    )
