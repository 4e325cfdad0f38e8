"""What a template makes of a row, exactly as promptsource has it.

(github.com/bigscience-workshop/promptsource, promptsource/templates.py: ``Template.apply`` without
its truncation, which P3 does not use either.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from flan_moe.data.readers.promptsource.sandbox import CompiledTemplate, TemplateRefusedError
from flan_moe.data.readers.promptsource.templates import PromptTemplate
from flan_moe.data.readers.record import RawDataError

SEPARATOR = "|||"
# Stands for the separator in values while a row is rendered.
_PROTECTED = "\N{SYMBOL FOR UNIT SEPARATOR}\N{SYMBOL FOR RECORD SEPARATOR}\N{SYMBOL FOR NULL}"


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A row in a template.

    Attributes:
        parts: Prompt and target. Fewer or more where the template says so for this row; such rows
            are not used.
        choices: What the target is chosen from, or None.
    """

    parts: tuple[str, ...]
    choices: tuple[str, ...] | None


class PromptRenderer:
    """Applies one template to rows.

    Args:
        template: Compiled here, once.

    Raises:
        RawDataError: The template is refused; names the file and the template.
    """

    def __init__(self, template: PromptTemplate) -> None:
        self._where = f"{template.file}: template {template.name!r}"
        try:
            self._text = CompiledTemplate(template.jinja)
            self._choices = template.answer_choices and CompiledTemplate(template.answer_choices)
        except TemplateRefusedError as error:
            raise RawDataError(f"{self._where}: {error}") from error
        self.columns = self._text.columns - {"answer_choices"}
        if self._choices:
            self.columns |= self._choices.columns

    def check_columns(self, row: Mapping[str, Any]) -> None:
        """Refuse rows of another data set.

        Raises:
            RawDataError: The template reads a column that the row has not, or the row has the
                column that is the template's own.
        """
        missing = sorted(self.columns - row.keys())
        if missing:
            raise RawDataError(
                f"{self._where}: reads the column {missing[0]!r}; the rows have "
                f"{', '.join(sorted(row))}"
            )
        if "answer_choices" in row:
            raise RawDataError(
                f"{self._where}: the rows have a column 'answer_choices'; expected none of that "
                "name, which stands for the template's own choices"
            )

    def apply(self, row: Mapping[str, Any], rng: Random) -> Rendered:
        """Prompt, target and choices of a row.

        Args:
            row: Column, then value.
            rng: Of the template's own random choices.

        Raises:
            TemplateTooCostlyError: The template works too much for one prompt.
            Exception: Whatever the template's own expressions raise for the row.
        """
        values = {
            key: value.replace(SEPARATOR, _PROTECTED) if isinstance(value, str) else value
            for key, value in row.items()
        }
        choices = None
        if self._choices:
            choices = _split(self._choices.render(values, rng))
        text = self._text.render({**values, "answer_choices": choices and list(choices)}, rng)
        return Rendered(parts=_split(text), choices=choices)


def _split(text: str) -> tuple[str, ...]:
    # In this order, as promptsource splits: choices are stripped before the separator comes back,
    # which changes nothing, because it has no outer blanks.
    return tuple(part.strip().replace(_PROTECTED, SEPARATOR) for part in text.split(SEPARATOR))
