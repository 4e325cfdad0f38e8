"""The quickstart's data: mini-Flan, or raw data that the user has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flan_moe.train.recipe import RecipeError

if TYPE_CHECKING:
    from flan_moe.data import BuildOptions

TEST_TASKS = Path("splits", "default", "test_tasks.txt")
"""Where the Natural Instructions repository names the tasks of its test split."""

HOLD_OUT_EVERY = 5
"""Without a list of test tasks, every so many tasks of a format are held out."""

VALIDATION, EVALUATION = 16, 50
"""Validation examples and evaluation questions per task."""


def build_quickstart_data(
    out: Path, raw: Path | None, examples: int, *, report: Callable[[str], None]
) -> None:
    """Build the data folder of a quickstart; it appears whole or not at all.

    Args:
        out: The data folder.
        raw: A folder of raw data, or None for mini-Flan.
        examples: Training examples per task at most.
        report: Receives progress lines.

    Raises:
        RecipeError: If ``raw`` holds no data that is understood, or data that are damaged.
    """
    from flan_moe.data import build_data_directory

    if raw is None:
        sources, options = _mini_flan(examples)
    else:
        try:
            sources, options = _raw(raw, examples)
        except (OSError, ValueError) as error:
            raise RecipeError(f"--data {raw}: {error}") from None
    held_out = [s.name for s in sources if s.group != "held_in"]
    report(f"{len(sources)} tasks, {len(held_out)} of them held out of training")
    try:
        build_data_directory(out, sources, options, report=report)
    except ValueError as error:
        raise RecipeError(f"--data {raw}: {error}" if raw else str(error)) from None


def find_raw(path: Path) -> dict[str, Path]:
    """The folders of Natural Instructions tasks and of Flan CoT files at or under ``path``.

    Raises:
        RecipeError: If there is neither.
    """
    places = {
        "natural_instructions": ((".", "tasks", "natural_instructions/tasks"), "task*.json"),
        "cot": ((".", "flan_cot", "cot_data"), "*.tsv"),
    }
    found = {}
    for key, (folders, pattern) in places.items():
        for folder in folders:
            if any((path / folder).glob(pattern)):
                found[key] = path / folder
                break
    if not found:
        raise RecipeError(
            f"--data {path}: expected Natural Instructions files (task*.json, here or in tasks/ or "
            "natural_instructions/tasks/) or Flan CoT files (*.tsv, here or in flan_cot/)"
        )
    return found


def _mini_flan(examples: int) -> tuple[list, BuildOptions]:
    from flan_moe.data import BuildOptions, mini_flan_sources

    sources = mini_flan_sources(
        examples=examples, validation=VALIDATION, evaluation=EVALUATION, seed=0
    )
    options = BuildOptions(name="mini-Flan", source="generated", vocab_size=2048)
    return sources, options


def _raw(path: Path, examples: int) -> tuple[list, BuildOptions]:
    from flan_moe.data import BuildOptions
    from flan_moe.data.sources.raw import RawOptions, raw_sources

    paths = find_raw(path)
    divided = RawOptions(examples=examples, validation=VALIDATION, evaluation=EVALUATION)
    names = {
        key: [s.name for s in raw_sources(divided, **{key: folder})]
        for key, folder in paths.items()
    }
    sources = raw_sources(divided, held_out=_held_out(names, paths), **paths)
    options = BuildOptions(
        name=" + ".join(paths), source=str(path), vocab_size=8192, max_target_tokens=64
    )
    return sources, options


def _held_out(names: dict[str, list[str]], paths: dict[str, Path]) -> list[str]:
    """The test split of Natural Instructions where it is known, else every fifth task."""
    chosen = []
    for key, tasks in names.items():
        listed: set[str] = set()
        if key == "natural_instructions":
            file = paths[key].parent / TEST_TASKS
            listed = set(file.read_text(encoding="utf-8").split()) if file.is_file() else set()
        apart = [t for t in tasks if t in listed] or tasks[HOLD_OUT_EVERY - 1 :: HOLD_OUT_EVERY]
        # Something must be left to train on.
        chosen += apart if len(apart) < len(tasks) else apart[1:]
    return chosen
