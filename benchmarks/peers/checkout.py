"""Where a peer's package comes from: installed, or a folder that the caller gives."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import types
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Package:
    """An importable package of someone else.

    Attributes:
        module: what is imported.
        distribution: its name for pip.
        folder: root of a check-out to take it from; None: the installed one.
        source: the folder inside the check-out that holds the module.
        bare: packages on the way to the module whose ``__init__`` is not run, because it imports
            what the module does not need and this machine may not have.
    """

    module: str
    distribution: str
    folder: Path | None = None
    source: str = "."
    bare: tuple[str, ...] = ()

    def problem(self) -> str | None:
        """Why it cannot be imported, or None, after importing it."""
        if self.folder is not None:
            path = str((self.folder / self.source).resolve())
            if path not in sys.path:
                sys.path.insert(0, path)
        if importlib.util.find_spec(self.module.partition(".")[0]) is None:
            where = "is not installed" if self.folder is None else f"is not in {self.folder}"
            return f"{self.module.partition('.')[0]} {where}"
        try:
            for package in self.bare:
                _import_bare(package)
            importlib.import_module(self.module)
        except Exception as error:  # a peer may raise anything where its hardware is missing
            return f"importing {self.module} fails: {type(error).__name__}: {error}"
        return None

    def version(self) -> str:
        """The commit of the check-out where it is a git one, else the installed version."""
        if self.folder is None:
            try:
                return metadata.version(self.distribution)
            except metadata.PackageNotFoundError:
                return "unknown"
        git = ["git", "-C", str(self.folder), "rev-parse", "--show-prefix", "HEAD"]
        answer = subprocess.run(git, capture_output=True, text=True)
        prefix, _, commit = answer.stdout.partition("\n")
        # Inside some other repository, HEAD would be that one's.
        return commit.strip() if answer.returncode == 0 and not prefix else "unknown"


def _import_bare(package: str) -> None:
    if package not in sys.modules:
        spec = importlib.util.find_spec(package)
        if spec is not None:
            module = types.ModuleType(package)
            module.__path__ = spec.submodule_search_locations
            sys.modules[package] = module
