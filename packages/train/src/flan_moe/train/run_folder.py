"""What a run leaves on disk, and how it is found again.

::

    RUN/recipe.yaml             the resolved recipe, every default spelled out
    RUN/run.json                format version and the fingerprints of data and mixture
    RUN/mixture.json            data.mixture and data.curriculum resolved, if the recipe has them
    RUN/model/config.json       the model's configuration
    RUN/tokenizer/              the tokenizer of the data
    RUN/metrics.jsonl           one line per batch
    RUN/checkpoints/ba40.pt     the whole training state after 40 batches
    RUN/finished.json           written last: the run is complete

Checkpoints are pickles, as Composer writes them. Loading one runs whatever code is inside: resume
only runs whose folder you trust. `flan_moe.train.export` writes safetensors for everyone else.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flan_moe.train.mixture_choice import mixture_fingerprint
from flan_moe.train.recipe import (
    RecipeError,
    as_yaml,
    differences,
    read_recipe,
    tree_differences,
)
from flan_moe.train.recipe_schema import Recipe

FORMAT = "flan-moe-run"
VERSION = 1

FREE_ON_RESUME = (
    "checkpoint.",
    "evaluation.",
    "logging.",
    "data.path:",
    "data.cache:",
    "data.workers:",
    "data.mixture:",
)
"""Recipe keys that may change between the parts of a resumed run: none touches the weights.

Data and the file of a mixture may have moved; that they are the same ones is seen from their
fingerprints.
"""


class RunFolderError(ValueError):
    """A run folder that cannot be used as asked; the message names the folder or file."""


class RunFolder:
    """A run's folder.

    Args:
        path: The folder; created by `open`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe_file = self.path / "recipe.yaml"
        self.run_file = self.path / "run.json"
        self.mixture_file = self.path / "mixture.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.finished_file = self.path / "finished.json"
        self.lock_file = self.path / ".lock"
        self.checkpoint_folder = self.path / "checkpoints"
        self.model_folder = self.path / "model"
        self.tokenizer_folder = self.path / "tokenizer"
        self._lock: int | None = None

    def open(
        self, recipe: Recipe, data_fingerprint: str, mixture: Mapping[str, Any] | None = None
    ) -> None:
        """Claim the folder for a run, or recognise it as this run's; then keep others out.

        No other process can open it before `release`, or the end of this one.

        Args:
            recipe: The resolved recipe.
            data_fingerprint: Identifies the data that the run trains on.
            mixture: What the recipe's mixture was resolved to (`ChosenMixture.record`).

        Raises:
            RunFolderError: If the folder holds another run (named differences), a run on other
                data or of another mixture, something that is not a run, a run that another process
                is at, or a run of this recipe while ``checkpoint.autoresume`` is false.
        """
        if self.run_file.exists():
            self.check_same_run(recipe, data_fingerprint, mixture)
            if not recipe.checkpoint.autoresume:
                raise RunFolderError(
                    f"{self.path}: already holds this run, and checkpoint.autoresume is false; "
                    "choose another folder or set checkpoint.autoresume=true"
                )
        elif self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"{self.path}: expected a folder for the run, found a file")
        elif self.path.exists() and any(self.path.iterdir()) and not self._is_unclaimed():
            raise RunFolderError(
                f"{self.path}: expected an empty folder or a run, found other files "
                f"({', '.join(sorted(p.name for p in self.path.iterdir())[:5])})"
            )
        self.checkpoint_folder.mkdir(parents=True, exist_ok=True)
        self._hold()
        write_atomically(self.recipe_file, as_yaml(recipe))
        if mixture is not None:
            write_atomically(self.mixture_file, json.dumps(mixture, indent=2) + "\n")
        identity = {
            "format": FORMAT,
            "version": VERSION,
            "data": data_fingerprint,
            "mixture": mixture_fingerprint(mixture),
        }
        write_atomically(self.run_file, json.dumps(identity, indent=2) + "\n")

    def release(self) -> None:
        """Let other processes open the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def check_same_run(
        self, recipe: Recipe, data_fingerprint: str, mixture: Mapping[str, Any] | None = None
    ) -> None:
        """Check that the run in this folder is of ``recipe`` on the same data and mixture.

        Raises:
            RunFolderError: Naming what differs.
        """
        identity = self.identity()
        changed = [
            line
            for line in differences(self.recipe(), recipe)
            if not line.startswith(FREE_ON_RESUME)
        ]
        if changed:
            raise RunFolderError(
                f"{self.path}: holds a run of another recipe ({'; '.join(changed)}); "
                "choose another folder"
            )
        if identity["data"] != data_fingerprint:
            raise RunFolderError(
                f"{self.path}: holds a run on other data: {recipe.data.path} has fingerprint "
                f"{data_fingerprint[:12]}, the run was started on {identity['data'][:12]}"
            )
        before, now = identity.get("mixture"), mixture_fingerprint(mixture)
        if before != now:
            raise RunFolderError(
                f"{self.path}: holds a run of another mixture: data.mixture "
                f"{recipe.data.mixture!r} has fingerprint {now and now[:12]}, the run was started "
                f"with {before and before[:12]} ({self._mixture_changes(mixture)}); "
                "choose another folder"
            )

    def _mixture_changes(self, mixture: Mapping[str, Any] | None) -> str:
        """What a mixture changes in the recorded one."""
        if mixture is None:
            return f"recorded in {self.mixture_file}"
        if not self.mixture_file.exists():
            return "it had no data.mixture"
        try:
            recorded = json.loads(self.mixture_file.read_text(encoding="utf-8"))
            changes = tree_differences(recorded["stages"], mixture["stages"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunFolderError(f"{self.mixture_file}: cannot be read: {error!r}") from None
        named = [f"from example {line}" for line in changes]
        more = f"; and {len(named) - 3} more" if len(named) > 3 else ""
        return "; ".join(named[:3]) + more

    def identity(self) -> dict[str, Any]:
        """Contents of ``run.json``.

        Raises:
            RunFolderError: If it is missing, damaged or of another format.
        """
        try:
            identity = json.loads(self.run_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunFolderError(f"{self.path}: not a run folder (no run.json)") from None
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{self.run_file}: cannot be read: {error}") from None
        if (
            not isinstance(identity, dict)
            or identity.get("format") != FORMAT
            or not isinstance(identity.get("data"), str)
        ):
            raise RunFolderError(f"{self.run_file}: expected a {FORMAT} file")
        if identity.get("version") != VERSION:
            raise RunFolderError(
                f"{self.run_file}: expected version {VERSION}, got {identity.get('version')!r}"
            )
        return identity

    def recipe(self) -> Recipe:
        """The recipe the run was started with.

        Raises:
            RunFolderError: If it is missing or does not read.
        """
        try:
            return read_recipe(
                self.recipe_file.read_text(encoding="utf-8"), str(self.recipe_file)
            ).recipe
        except OSError as error:
            raise RunFolderError(f"{self.recipe_file}: cannot be read: {error}") from None
        except RecipeError as error:
            raise RunFolderError(str(error)) from None

    def checkpoints(self) -> list[tuple[int, Path]]:
        """Checkpoints on disk, oldest first: batches done and file."""
        found = []
        for path in self.checkpoint_folder.glob("ba*.pt"):
            match = re.fullmatch(r"ba(\d+)\.pt", path.name)
            if match:
                found.append((int(match.group(1)), path))
        return sorted(found)

    def latest_checkpoint(self, warn: Callable[[str], None]) -> tuple[int, Path] | None:
        """The newest undamaged checkpoint, or None if there is no checkpoint at all.

        Args:
            warn: Receives a line about each damaged checkpoint that is passed over.

        Raises:
            RunFolderError: If there are checkpoints and every one is damaged.
        """
        checkpoints = self.checkpoints()
        for batch, path in reversed(checkpoints):
            problem = damage(path)
            if problem is None:
                return batch, path
            warn(f"{path}: damaged checkpoint passed over: {problem}")
        if checkpoints:
            raise RunFolderError(
                f"{self.checkpoint_folder}: every checkpoint is damaged; delete the run folder to "
                "start again"
            )
        return None

    def partial_checkpoint(self, batch: int) -> Path:
        """Where the checkpoint of ``batch`` is written before it is whole."""
        return self.checkpoint_folder / f".partial-ba{batch}.pt"

    def commit_checkpoint(self, partial: Path, batch: int) -> None:
        """Flush a written checkpoint to disk and give it its name."""
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(self.checkpoint_folder / f"ba{batch}.pt")
        _sync_folder(self.checkpoint_folder)

    def prune_checkpoints(self, keep: int) -> None:
        """Delete all but the newest ``keep`` checkpoints and what interrupted writes left."""
        for _, path in self.checkpoints()[:-keep]:
            path.unlink()
        for path in self.checkpoint_folder.glob(".partial-*"):
            path.unlink()

    def finished(self) -> dict[str, Any] | None:
        """Summary of the finished run, or None while it is unfinished."""
        try:
            return json.loads(self.finished_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise RunFolderError(f"{self.finished_file}: cannot be read: {error}") from None

    def finish(self, summary: dict[str, Any]) -> None:
        """Mark the run as complete."""
        write_atomically(self.finished_file, json.dumps(summary, indent=2) + "\n")

    def _hold(self) -> None:
        # A record lock: the kernel ends it with this process, and data loading workers, which
        # outlive a killed trainer for seconds, do not inherit it.
        self.release()
        self._lock = os.open(self.lock_file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            self.release()
            raise RunFolderError(f"{self.path}: another process is training this run") from None

    def _is_unclaimed(self) -> bool:
        """Whether a run was killed here between creating the folder and writing run.json."""
        ours = {".lock", "checkpoints", "recipe.yaml", "mixture.json"}
        ours |= {f".partial-{name}" for name in ("recipe.yaml", "mixture.json", "run.json")}
        names = {p.name for p in self.path.iterdir()}
        return names <= ours and not any(self.checkpoint_folder.glob("*"))


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file, or None.

    A torch checkpoint is a zip archive whose records carry checksums: reading it through finds a
    truncated or altered file without unpickling anything.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        return f"not a whole archive ({error})"
    if not any(name.endswith("/data.pkl") for name in names):
        return "an archive that torch did not write"
    return None if record is None else f"record {record} fails its checksum"


def write_atomically(path: Path, text: str) -> None:
    """Write a text file under a temporary name, flush it, and rename it into place."""
    partial = path.with_name(f".partial-{path.name}")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
