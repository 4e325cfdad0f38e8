"""``tasks``: list tasks, registered, of a data directory, or of mini-Flan."""

from __future__ import annotations

import argparse

from flan_moe.data.commands.arguments import HelpFormatter

EXAMPLES = """examples that work as printed:
  flan-moe-data tasks --count
  flan-moe-data tasks --mixture cot
  flan-moe-data tasks --type 'question*' --language Hindi
  flan-moe-data tasks --licence 'CC BY-SA*' --not-overlapping evaluation --json
  flan-moe-data tasks --overlaps strategyqa --all
  flan-moe-data tasks --mini
"""

_FILTERS = (
    ("--mixture", "mixtures", "muffin, t0_sf, niv2, cot, or a part: flan2021, dialog, ..."),
    ("--type", "types", "what is asked for, such as summarization"),
    ("--source", "sources", "data set that it is made from, such as glue/*"),
    ("--licence", "licences", "of the data set; unknown for those that state none"),
    ("--language", "languages", "of inputs or outputs"),
    ("--split", "splits", "of Natural Instructions: train, test or excluded"),
    ("--overlaps", "overlapping", "shares data with this evaluation set; evaluation for any"),
    ("--not-overlapping", "not_overlapping", "shares none with it"),
)


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the sub-command."""
    tasks = commands.add_parser(
        "tasks",
        help="list the tasks of the Flan collection, of a data directory, or of mini-Flan",
        description="Without DIR: the registered tasks of the Flan collection. Names of types, "
        "sources, licences and languages may be shell patterns, and case does not count. Any value "
        "of a filter may fit, but every filter has to.",
        epilog=EXAMPLES,
        formatter_class=HelpFormatter,
    )
    tasks.add_argument("directory", nargs="?", metavar="DIR", help="list what was built there")
    tasks.add_argument("--mini", action="store_true", help="list the families of mini-Flan")
    for option, target, text in _FILTERS:
        tasks.add_argument(
            option, dest=target, nargs="+", default=argparse.SUPPRESS, metavar="X", help=text
        )
    tasks.add_argument(
        "--all",
        action="store_true",
        help="input inversions, and the tasks that the collection leaves out, too",
    )
    tasks.add_argument("--json", action="store_true", help="everything that is known, as JSON")
    tasks.add_argument(
        "--count", action="store_true", help="numbers of tasks only, and the paper's"
    )
    tasks.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    filters = {
        target: getattr(arguments, target)
        for _, target, _ in _FILTERS
        if hasattr(arguments, target)
    }
    registry_only = [name for name in ("all", "json", "count") if getattr(arguments, name)]
    registry_only += filters
    if arguments.directory is not None or arguments.mini:
        if registry_only or (arguments.directory is not None and arguments.mini):
            raise ValueError(
                "filters, --all, --json, --count are for registered tasks only; "
                "give no directory and no --mini, or one of the two alone"
            )
        if arguments.mini:
            _list_mini()
        else:
            _list_directory(arguments.directory)
        return
    from flan_moe.data.registry import load_registry
    from flan_moe.data.registry.listing import count_lines, task_lines, tasks_json
    from flan_moe.data.registry.task import COLLECTION, PARTS

    registry = load_registry()
    found = registry.select(parts=PARTS if arguments.all else (COLLECTION,), **filters)
    if arguments.json:
        print(tasks_json(found))
        return
    lines = count_lines(registry, found) if arguments.count else task_lines(found)
    for line in lines:
        print(line)


def _list_mini() -> None:
    from flan_moe.data.mini_flan import TASK_FAMILIES, group_of

    for family in TASK_FAMILIES:
        group = group_of(family).replace("_", " ")
        print(f"{family.name:<20} {family.mixture:<8} {group:<16} {family.kind}")


def _list_directory(directory: str) -> None:
    from flan_moe.data.storage.manifest import read_manifest

    manifest = read_manifest(directory)
    width = max(len(task["name"]) for task in manifest.tasks)
    print(f"{'task':<{width}}  mixture   group            {'train':>7} {'valid.':>7} {'eval':>7}")
    for task in manifest.tasks:
        group = task["group"].replace("_", " ")
        counts = " ".join(f"{task[key]:>7}" for key in ("train", "validation", "eval"))
        print(f"{task['name']:<{width}}  {task['mixture']:<9} {group:<16} {counts}")
