"""The column layouts in which templated Flan data are passed around, and how rows are labelled.

A layout says which columns hold the prompt, the target and the labels. A naming turns the labels of
a row, which every dump spells in its own way, into the name of a task, a stored mixture and a
setting of prompts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from flan_moe.data.readers.errors import RawDataError
from flan_moe.data.sources.task_source import LONGEST_NAME
from flan_moe.data.template_types import TEMPLATE_TYPES, ZS_OPT

if TYPE_CHECKING:
    from flan_moe.data.registry import RegisteredTask, Registry

TRAIN = "train"
OTHER_SPLITS = ("validation", "valid", "val", "dev", "test", "eval")
# Labels of sources and of folders, lower case, then the stored mixture
# (google-research/FLAN, flan/v2/task_configs.py: task_source; names of the dumps' folders).
SOURCES: Mapping[str, str] = {
    "flan2021": "muffin",
    "flan": "muffin",
    "muffin": "muffin",
    "dialog": "muffin",
    "p3": "t0_sf",
    "t0": "t0_sf",
    "t0_sf": "t0_sf",
    "niv2": "niv2",
    "natural_instructions": "niv2",
    "cot": "cot",
}
_SETTING = re.compile(r"(?<![a-z0-9])(zs|fs)_?(noopt|opt)(?![a-z])")
_VERSION = re.compile(r":\d+(\.\d+)*$")
_TEMPLATES = re.compile(r"_10templates.*$")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
_NATURAL_INSTRUCTION = re.compile(r"task\d+_")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which columns of a row hold what; an empty name where the layout has no such column.

    Attributes:
        name: What the layout is called in messages.
        prompt: Column of what the encoder reads.
        target: Column of what the decoder learns to write.
        task: Column of the task's name.
        source: Column of the sub-mixture.
        setting: Column of the setting of the prompt.
        index: Column of the number of the wording.
        split: Column of the split.
    """

    name: str
    prompt: str
    target: str
    task: str = ""
    source: str = ""
    setting: str = ""
    index: str = ""
    split: str = ""

    def needed(self) -> frozenset[str]:
        """The columns that must be there: ``index`` and ``split`` may be missing."""
        columns = (self.prompt, self.target, self.task, self.source, self.setting)
        return frozenset(filter(None, columns))

    def columns(self, present: Collection[str]) -> list[str]:
        """The columns to read of those that are there."""
        optional = {column for column in (self.index, self.split) if column in present}
        return sorted(self.needed() | optional)


# More columns first: the first whose columns are all there is taken.
LAYOUTS: tuple[Layout, ...] = (
    Layout(
        name="passthrough",  # the features of the Flan pipeline itself, with their underscore
        prompt="inputs",
        target="targets",
        task="_task_name",
        source="_task_source",
        setting="_template_type",
        index="_template_idx",
        split="split",
    ),
    Layout(
        name="submix",
        prompt="inputs",
        target="targets",
        task="task_name",
        source="task_source",
        setting="template_type",
        index="template_idx",
        split="split",
    ),
    Layout(
        name="source/target",
        prompt="source",
        target="target",
        task="task_name",
        source="task_source",
        setting="template_type",
        index="template_idx",
        split="split",
    ),
    Layout(  # what the row does not say is in the name of the file, or the task's
        name="inputs/targets/task", prompt="inputs", target="targets", task="task", split="split"
    ),
    Layout(name="P3", prompt="inputs_pretokenized", target="targets_pretokenized"),
)


def find_layout(columns: Collection[str], where: str) -> Layout:
    """The layout of a file with these columns.

    Raises:
        RawDataError: It is none of the known ones; lists the columns found and those expected.
    """
    for layout in LAYOUTS:
        if layout.needed() <= set(columns):
            return layout
    known = "; ".join(", ".join(sorted(layout.needed())) for layout in LAYOUTS)
    raise RawDataError(
        f"{where}: columns {', '.join(sorted(map(str, columns))) or '(none)'}; "
        f"expected those of one of the templated layouts: {known}"
    )


@dataclass(frozen=True, kw_only=True)
class RowLabels:
    """What a dump says about a row, as it spells it; empty where it says nothing.

    Attributes:
        task: Name of the task.
        source: The sub-mixture.
        setting: The setting of the prompt.
        path: Folders and file name, below the location that was given.
    """

    task: str
    source: str
    setting: str
    path: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class StoredTask:
    """Where a row belongs.

    Attributes:
        task: Name of the task: letters, digits, ``_``, ``-`` and ``.``.
        mixture: The stored mixture.
        setting: One of `TEMPLATE_TYPES`.
    """

    task: str
    mixture: str
    setting: str


# A row's labels to its place, or to the reason why it has none.
TaskNaming = Callable[[RowLabels], StoredTask | str]


@dataclass(frozen=True, kw_only=True)
class FlanNaming:
    """The naming for the known dumps.

    A task that the registry knows, by whatever spelling, takes the registry's name; another one a
    plain form of its own. The setting comes from the row or else from the path
    (``flan_zs_noopt_train.jsonl.gz``, ``niv2_fsopt_data``); tasks of the ``_10templates`` dump and
    P3 are zero-shot with options. The mixture comes from the row, the path, or the task's name.

    Attributes:
        aliases: Another spelling of a task's name, then the name.
        mixture: For rows that nothing tells the mixture of; None to leave them out.
        setting: For rows that nothing tells the setting of; None to leave them out.
    """

    aliases: Mapping[str, str] = field(default_factory=dict)
    mixture: str | None = None
    setting: str | None = None

    def __post_init__(self) -> None:
        """Check the setting.

        Raises:
            ValueError: It is none of the four.
        """
        if self.setting is not None and self.setting not in TEMPLATE_TYPES:
            raise ValueError(
                f"setting is {self.setting!r}; expected one of {', '.join(TEMPLATE_TYPES)}"
            )

    def __call__(self, labels: RowLabels) -> StoredTask | str:
        """The place of a row, or why it has none."""
        name = self.aliases.get(labels.task) or plain_name(labels.task)
        name = self.aliases.get(name, name)
        if not name or not name[0].isalnum() or len(name) > LONGEST_NAME:
            return f"unusable task name {shortened(labels.task)}"
        known = self._registry.find(self.aliases.get(labels.task, labels.task))
        known = known or self._registry.find(name)
        mixture = self._mixture(labels, name, known)
        if mixture is None:
            return f"unknown task source {shortened(labels.source)}"
        if known is not None and known.mixture == mixture:
            name = known.name
        setting = self._setting(labels)
        if setting is None:
            return f"unknown template type {shortened(labels.setting)}"
        return StoredTask(task=name, mixture=mixture, setting=setting)

    @cached_property
    def _registry(self) -> Registry:
        from flan_moe.data.registry import load_registry

        return load_registry()

    def _mixture(self, labels: RowLabels, name: str, known: RegisteredTask | None) -> str | None:
        if labels.source:
            return SOURCES.get(plain_name(labels.source).lower())
        for part in reversed(labels.path):
            words = _SETTING.sub("", part.lower()).replace("-", "_").strip("_").split("_")
            for length in (2, 1):
                if (mixture := SOURCES.get("_".join(words[:length]))) is not None:
                    return mixture
        if known is not None:
            return known.mixture
        if _NATURAL_INSTRUCTION.match(name):
            return "niv2"
        return "muffin" if _TEMPLATES.search(labels.task) else self.mixture

    def _setting(self, labels: RowLabels) -> str | None:
        if labels.setting:
            found = _SETTING.fullmatch(labels.setting.lower())
            return f"{found[1]}_{found[2]}" if found else None
        for part in reversed(labels.path):
            if found := _SETTING.search(part.lower()):
                return f"{found[1]}_{found[2]}"
        return ZS_OPT if _TEMPLATES.search(labels.task) else self.setting


def plain_name(label: str) -> str:
    """A label as a name: ``glue/mnli:2.0.0`` is ``glue_mnli``, ``aeslc_10templates`` is ``aeslc``.

    Of ``t0_task_adaptation:cos_e_v1.11_rationale`` what follows the colon is the name.
    """
    label = _TEMPLATES.sub("", _VERSION.sub("", label.strip()))
    return _UNSAFE.sub("_", label.removeprefix("t0_task_adaptation:")).strip("_")


def split_of(path: tuple[str, ...]) -> str:
    """The split that a file's folders and name tell; ``train`` where they tell none."""
    *folders, name = path
    words = re.split(r"[^a-z0-9]+", _bare(name).lower())
    for word in [words[-1], words[0], *(folder.lower() for folder in reversed(folders))]:
        if word == TRAIN or word in OTHER_SPLITS:
            return word
    return TRAIN


def config_of(path: tuple[str, ...]) -> str:
    """The task of a file without a column for it: its folder, or else its name.

    Folders that only name a split are passed over.
    """
    *folders, name = path
    for folder in reversed(folders):
        if folder.lower() not in (TRAIN, "data", "default", *OTHER_SPLITS):
            return folder
    splits = "|".join((TRAIN, *OTHER_SPLITS))
    return re.sub(rf"[-_]({splits})([-_]\d.*)?$", "", _bare(name))


def _bare(name: str) -> str:
    for suffix in (".gz", ".jsonl", ".json", ".parquet"):
        name = name.removesuffix(suffix)
    return name


def shortened(label: str) -> str:
    """A label for messages: quoted, and cut where it is long."""
    return repr(label if len(label) <= 40 else label[:37] + "...")
