"""Template files: YAML with the two tags that promptsource gives its own classes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flan_moe.data.readers.record import RawDataError

FILE = "templates.yaml"
_SET_NAME = re.compile(r"[\w-][\w.+-]*(/[\w-][\w.+-]*)?", re.ASCII)
_NOT_IN_NAMES = re.compile(r"[^0-9a-zA-Z.]+")


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """One template.

    Attributes:
        name: Unique within its file.
        jinja: ``PROMPT ||| TARGET``.
        answer_choices: Jinja for ``CHOICE ||| CHOICE ...``, or None.
        choices_in_prompt: Whether the prompt names the choices itself.
        file: Where it was read.
    """

    name: str
    jinja: str
    answer_choices: str | None
    choices_in_prompt: bool
    file: Path


@dataclass(frozen=True, kw_only=True)
class TemplateFile:
    """The templates of one data set.

    Attributes:
        dataset: Its name.
        subset: Its configuration, or None.
        templates: Sorted by name.
    """

    dataset: str
    subset: str | None
    templates: tuple[PromptTemplate, ...]

    def task(self, template: PromptTemplate) -> str:
        """The name of the task that a template makes of the set, as the Flan collection has it."""
        parts = (self.dataset, self.subset, template.name)
        return _NOT_IN_NAMES.sub("_", "_".join(part for part in parts if part))


class _Loader(yaml.SafeLoader):
    """Plain YAML without merge keys, and two tags that are read as plain mappings."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Refuse what YAML would put together in silence, or without end.

        A few lines of merge keys stand for millions of values, and of a key that is given twice all
        but the last are lost.
        """
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, "expected no merge keys", key.start_mark
                )
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key.value!r} is given twice", key.start_mark
                    )
                seen.add(key.value)


def _mapping(loader: yaml.SafeLoader, node: yaml.Node) -> dict[Any, Any]:
    if not isinstance(node, yaml.MappingNode):
        raise yaml.constructor.ConstructorError(None, None, "expected a mapping", node.start_mark)
    return loader.construct_mapping(node, deep=True)


for _tag in ("!Template", "!TemplateMetadata"):
    _Loader.add_constructor(_tag, _mapping)


def read_templates(file: str | Path) -> TemplateFile:
    """Read a ``templates.yaml``.

    Raises:
        RawDataError: It is missing, not YAML, has other tags, or a template lacks its parts.
    """
    file = Path(file)
    try:
        with file.open(encoding="utf-8") as stream:
            record = yaml.load(stream, Loader=_Loader)
    except FileNotFoundError:
        raise RawDataError(f"{file}: no such file") from None
    except UnicodeDecodeError as error:
        raise RawDataError(f"{file}: not UTF-8: {error}") from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise RawDataError(f"{file}: not a file of templates: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("templates"), dict):
        raise RawDataError(f"{file}: expected a mapping with 'dataset' and 'templates'")
    subset = record.get("subset")
    if not isinstance(record.get("dataset"), str) or not isinstance(subset, str | None):
        raise RawDataError(f"{file}: dataset and subset: expected text")
    for label in (record["dataset"], subset):
        # Rows are looked for under these names.
        if label is not None and not _SET_NAME.fullmatch(label):
            raise RawDataError(f"{file}: dataset or subset is {label!r}; expected a plain name")
    templates = [_template(file, key, entry) for key, entry in record["templates"].items()]
    names = [template.name for template in templates]
    for name in names:
        if names.count(name) > 1:
            raise RawDataError(f"{file}: template {name!r} is there twice; expected unique names")
    return TemplateFile(
        dataset=record["dataset"],
        subset=subset,
        templates=tuple(sorted(templates, key=lambda template: template.name)),
    )


def _template(file: Path, key: object, entry: Any) -> PromptTemplate:
    where = f"{file}: templates.{key}"
    if not isinstance(entry, dict):
        raise RawDataError(f"{where}: expected a template")
    name, jinja, choices = (entry.get(part) for part in ("name", "jinja", "answer_choices"))
    if not isinstance(name, str) or not name or not isinstance(jinja, str):
        raise RawDataError(f"{where}: expected the texts 'name' and 'jinja'")
    if not isinstance(choices, str | None):
        raise RawDataError(f"{where}: answer_choices is {choices!r}; expected text or nothing")
    metadata = entry.get("metadata")
    return PromptTemplate(
        name=name,
        jinja=jinja,
        answer_choices=choices or None,
        choices_in_prompt=isinstance(metadata, dict) and metadata.get("choices_in_prompt") is True,
        file=file,
    )
