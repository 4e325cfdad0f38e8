"""Where the samples of a data directory come from: ``provenance.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

from flan_moe.data.json_types import check_types

PROVENANCE_FORMAT = "flan-moe-provenance"
PROVENANCE_VERSION = 1
PROVENANCE_FILE = "provenance.json"

_TASK_KEYS = {
    "name": str,
    "inputs": tuple[Mapping[str, Any], ...],
    "provenance": Mapping[str, str],
}


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a build was made of and by.

    Attributes:
        package: Version of this package.
        options: Of the build, those that decide its content.
        tokenizer: ``"origin"``, ``"trained"`` on the data or ``"given"``, and ``"sha256"``.
        tasks: In order of id: ``{"name", "inputs", "provenance"}``; ``inputs`` are the raw files,
            each ``{"name", "bytes", "sha256"}``, and ``provenance`` is the task's licence, source
            and the like, where known.
    """

    package: str
    options: Mapping[str, Any]
    tokenizer: Mapping[str, str]
    tasks: tuple[Mapping[str, Any], ...]

    def write(self, directory: Path) -> None:
        """Write ``provenance.json``."""
        record = {"format": PROVENANCE_FORMAT, "version": PROVENANCE_VERSION, **asdict(self)}
        text = json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        (directory / PROVENANCE_FILE).write_text(text, encoding="utf-8")


def read_provenance(directory: str | Path) -> Provenance:
    """Read ``provenance.json`` of a data directory.

    Raises:
        ValueError: It is missing, damaged or of another version; names file and key.
    """
    file = Path(directory) / PROVENANCE_FILE
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise TypeError("not a JSON object")
        for key, expected in (("format", PROVENANCE_FORMAT), ("version", PROVENANCE_VERSION)):
            if record.pop(key, None) != expected:
                raise ValueError(f"{key} is not {expected!r}")
        check_types(record, get_type_hints(Provenance))
        for number, task in enumerate(record["tasks"]):
            check_types(task, _TASK_KEYS, f"tasks[{number}].")
        return Provenance(tasks=tuple(record.pop("tasks")), **record)
    except FileNotFoundError:
        raise ValueError(
            f"{file}: no such file; expected a directory built by flan-moe-data"
        ) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: damaged provenance: {error}") from error
