"""``tasks``: list tasks."""

from __future__ import annotations

import argparse


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the sub-command."""
    tasks = commands.add_parser("tasks", help="list the tasks of a data directory, or of mini-Flan")
    tasks.add_argument("directory", nargs="?", metavar="DIR")
    tasks.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    if arguments.directory is None:
        from flan_moe.data.mini_flan import TASK_FAMILIES, group_of

        for family in TASK_FAMILIES:
            group = group_of(family).replace("_", " ")
            print(f"{family.name:<20} {family.mixture:<8} {group:<16} {family.kind}")
        return
    from flan_moe.data.manifest import read_manifest

    manifest = read_manifest(arguments.directory)
    width = max(len(task["name"]) for task in manifest.tasks)
    print(f"{'task':<{width}}  mixture   group            {'train':>7} {'valid.':>7} {'eval':>7}")
    for task in manifest.tasks:
        group = task["group"].replace("_", " ")
        counts = " ".join(f"{task[key]:>7}" for key in ("train", "validation", "eval"))
        print(f"{task['name']:<{width}}  {task['mixture']:<9} {group:<16} {counts}")
