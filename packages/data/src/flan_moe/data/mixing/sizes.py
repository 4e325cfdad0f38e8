"""Sizes of tasks: of a built data directory, or as registered."""

from __future__ import annotations

from pathlib import Path

from flan_moe.data.mixing.shares import TaskSize, sub_mixture_of
from flan_moe.data.mixing.spec import MixtureSpec
from flan_moe.data.registry.registry import Registry


def directory_sizes(directory: str | Path) -> tuple[TaskSize, ...]:
    """Training samples of each task in a data directory, by setting.

    Raises:
        ValueError: It is not a data directory, or damaged; names the file.
    """
    from flan_moe.data.storage.manifest import read_manifest
    from flan_moe.data.storage.task_table import read_task_table

    manifest = read_manifest(directory)
    return tuple(
        TaskSize(name=task.name, mixture=mixture, count=task.count, types=task.types)
        for mixture in manifest.splits.get("train", {})
        for task in read_task_table(Path(directory) / "train" / mixture).tasks
    )


def registered_sizes(registry: Registry) -> tuple[TaskSize, ...]:
    """Sizes of all registered tasks that have one; numbers by setting are not known."""
    return tuple(
        TaskSize(name=task.name, mixture=task.mixture, count=task.size)
        for task in registry
        if task.size
    )


def without_size(spec: MixtureSpec, registry: Registry) -> tuple[str, ...]:
    """Registered tasks that a specification takes, but whose size is not known."""
    tasks = (task for task in registry if not task.size)
    return tuple(
        task.name
        for task in tasks
        if sub_mixture_of(spec, TaskSize(name=task.name, mixture=task.mixture, count=1))
    )
