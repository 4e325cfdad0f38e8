"""``verify``: re-read everything and compare hashes."""

from __future__ import annotations

import argparse


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the sub-command."""
    verify = commands.add_parser("verify", help="re-read everything and compare hashes")
    verify.add_argument("directory", metavar="DIR")
    verify.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from flan_moe.data.storage.verify import verify_data_directory

    for line in verify_data_directory(arguments.directory):
        print(line)
