"""``show``: print decoded examples, or a packed batch."""

from __future__ import annotations

import argparse


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the sub-command."""
    show = commands.add_parser("show", help="print decoded examples, or a packed batch")
    show.add_argument("directory", metavar="DIR")
    show.add_argument("--task", metavar="NAME", help="default: the first task")
    show.add_argument("--split", default="train", choices=("train", "validation"))
    show.add_argument("--limit", type=int, default=3, metavar="N", help="examples or rows")
    show.add_argument("--packed", action="store_true", help="rows of the first training batch")
    show.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from flan_moe.data.show import show_packed_batch, show_task

    if arguments.limit < 0:
        raise ValueError(f"limit is {arguments.limit}; expected 0 or more")
    if arguments.packed:
        show_packed_batch(arguments.directory, split=arguments.split, limit=arguments.limit)
    else:
        show_task(arguments.directory, arguments.task, split=arguments.split, limit=arguments.limit)
