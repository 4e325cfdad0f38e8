"""``show``: print decoded examples, or packed rows."""

from __future__ import annotations

import argparse
import sys

from flan_moe.data.template_types import TEMPLATE_TYPES


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the sub-command."""
    show = commands.add_parser("show", help="print decoded examples, or packed rows")
    show.add_argument("directory", metavar="DIR", help="a data directory, or a packed one")
    show.add_argument("--task", metavar="NAME", help="default: the first task")
    show.add_argument("--type", choices=TEMPLATE_TYPES, help="only this setting of prompts")
    show.add_argument("--split", choices=("train", "validation"), help="default: train")
    show.add_argument("--limit", type=int, default=3, metavar="N", help="examples or rows")
    show.add_argument("--packed", action="store_true", help="rows of the first batch")
    show.add_argument(
        "--color",
        default="auto",
        choices=("auto", "always", "never"),
        help="of packed rows; auto: on a terminal",
    )
    show.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from flan_moe.data.offline.manifest import is_packed
    from flan_moe.data.show import show_packed_batch, show_packed_rows, show_task

    if arguments.limit < 0:
        raise ValueError(f"limit is {arguments.limit}; expected 0 or more")
    colour = arguments.color == "always" or (arguments.color == "auto" and sys.stdout.isatty())
    split = arguments.split or "train"
    if is_packed(arguments.directory):
        if arguments.type is not None or arguments.split is not None:
            raise ValueError(
                f"{arguments.directory} holds packed rows: --type and --split are for data "
                "directories"
            )
        show_packed_rows(
            arguments.directory, limit=arguments.limit, task=arguments.task, colour=colour
        )
    elif arguments.packed:
        if arguments.task is not None or arguments.type is not None:
            raise ValueError("--packed shows a batch of all tasks; give no --task and no --type")
        show_packed_batch(arguments.directory, split=split, limit=arguments.limit, colour=colour)
    else:
        show_task(
            arguments.directory,
            arguments.task,
            split=split,
            limit=arguments.limit,
            kind=arguments.type,
        )
