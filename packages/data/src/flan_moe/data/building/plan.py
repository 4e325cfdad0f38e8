"""The plan of a build: everything that decides its bytes, to be compared when it is continued."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flan_moe.data.__about__ import __version__
from flan_moe.data.building.description import Describer, IndescribableError
from flan_moe.data.building.disk import writing
from flan_moe.data.sources.task_source import TaskSource

PLAN_FORMAT = "flan-moe-build-plan"
PLAN_VERSION = 1
PLAN_FILE = "plan.json"
LIBRARIES = ("tokenizers", "mosaicml-streaming")  # whose bytes are stored

_SHOWN = 60  # characters of a value in an error


class PlanError(ValueError):
    """A stopped build is of another plan; it is left as it is."""


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """A raw file as it was when the build was planned.

    Attributes:
        name: Without its folder, which may differ between machines.
        bytes: Its size.
        sha256: Of its content.
        stamp: Modification time in ns and inode; not part of the plan.
    """

    name: str
    bytes: int
    sha256: str
    stamp: tuple[int, int]

    def record(self) -> dict[str, Any]:
        """What a plan and the provenance keep of it."""
        return {"name": self.name, "bytes": self.bytes, "sha256": self.sha256}


def hash_inputs(
    sources: Sequence[TaskSource], *, threads: int, known: Mapping[str, InputFile] | None = None
) -> dict[Path, InputFile]:
    """The raw files of all sources with their hashes; each is read once.

    Args:
        sources: Name their files.
        threads: How many files are read at once.
        known: By path, hashed for a build that was stopped: not read again where size,
            modification time and inode are the same.

    Raises:
        ValueError: A file is missing; names it and the task.
    """
    known = known or {}
    needed = {file: source.name for source in reversed(sources) for file in source.inputs}

    def examine(file: Path) -> InputFile:
        try:
            stat = file.stat()
            stamp = (stat.st_mtime_ns, stat.st_ino)
            old = known.get(str(file.absolute()))
            if old is not None and (old.bytes, old.stamp) == (stat.st_size, stamp):
                return old
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except (FileNotFoundError, IsADirectoryError) as error:
            raise ValueError(f"{file}: {error.strerror}; task {needed[file]!r} reads it") from None
        return InputFile(name=file.name, bytes=stat.st_size, sha256=digest, stamp=stamp)

    with ThreadPoolExecutor(max_workers=max(threads, 1)) as pool:
        return dict(zip(needed, pool.map(examine, needed), strict=True))


def refuse_changed_inputs(inputs: Mapping[Path, InputFile]) -> None:
    """Refuse to finish when a raw file was changed after it was hashed.

    Raises:
        ValueError: Names the file.
    """
    for file, found in inputs.items():
        stat = file.stat() if file.is_file() else None
        if stat is None or (stat.st_size, stat.st_mtime_ns) != (found.bytes, found.stamp[0]):
            raise ValueError(f"{file}: changed while the build ran; build again")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that decides the bytes of a build.

    Attributes:
        versions: Package, then its version.
        options: Of the build, without those that only say how it is run.
        tasks: Name, then what is known of its source; in the order of the ids.
        resumable: Whether equal plans are known to give equal content.
    """

    versions: Mapping[str, str]
    options: Mapping[str, Any]
    tasks: Mapping[str, Any]
    resumable: bool

    def write(self, directory: Path) -> None:
        """Write ``plan.json``, whole or not at all."""
        write_json(directory / PLAN_FILE, self._record())

    def continues(self, directory: Path) -> bool:
        """Whether the work of the stopped build in ``directory`` is of use to this one.

        Returns:
            False where that build could not tell what it was made of.

        Raises:
            PlanError: It had another plan; names the first difference and how to discard it.
        """
        file = directory / PLAN_FILE
        try:
            old = json.loads(file.read_text(encoding="utf-8"))
            if not old["resumable"]:
                return False
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            difference = f"its {PLAN_FILE} cannot be read ({error!r})"
        else:
            new = json.loads(json.dumps(self._record()))
            if old == new and list(old["tasks"]) == list(new["tasks"]):
                return True
            difference = _difference(old, new) or "the order of the tasks differs"
        raise PlanError(
            f"{directory} holds a build that was stopped, with another plan: {difference}. Give "
            "the same arguments to go on with it, or discard it with --restart (restart=True)"
        )

    def _record(self) -> dict[str, Any]:
        return {
            "format": PLAN_FORMAT,
            "version": PLAN_VERSION,
            "versions": dict(self.versions),
            "options": dict(self.options),
            "resumable": self.resumable,
            "tasks": dict(self.tasks),
        }


def make_plan(
    sources: Sequence[TaskSource], options: Mapping[str, Any], inputs: Mapping[Path, InputFile]
) -> Plan:
    """The plan of a build.

    Args:
        sources: The tasks in the order of their ids.
        options: Whatever else decides the bytes, as JSON values.
        inputs: From `hash_inputs`.
    """
    describer = Describer({path: f"(input {file.name})" for path, file in inputs.items()})
    resumable = True
    tasks = {}
    for source in sources:
        try:
            content = describer.describe(source.open)
        except IndescribableError as error:
            content, resumable = f"cannot be told: {error}", False
        tasks[source.name] = {
            "mixture": source.mixture,
            "group": source.group,
            "cot": source.cot,
            "provenance": dict(source.provenance),
            "inputs": [inputs[file].record() for file in source.inputs],
            "content": content,
        }
    versions = {"flan-moe-data": __version__} | {name: version(name) for name in LIBRARIES}
    return Plan(versions=versions, options=options, tasks=tasks, resumable=resumable)


def write_json(file: Path, value: Any) -> None:
    """Write a JSON file under a temporary name and rename it."""
    partial = file.with_name(file.name + ".partial")
    with writing(file):
        partial.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(file)


def _difference(old: Any, new: Any, where: str = "") -> str | None:
    """The first place where two JSON values differ, with both."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            place = f"{where}.{key}" if where else str(key)
            if key not in new:
                return f"{place} was {_show(old[key])}, now there is none"
            if key not in old:
                return f"{place} is new: {_show(new[key])}"
            found = _difference(old[key], new[key], place)
            if found:
                return found
        return None
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            found = _difference(one, other, f"{where}[{number}]")
            if found:
                return found
        return None
    return None if old == new else f"{where} was {_show(old)}, is now {_show(new)}"


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
