"""``flan-moe-data``: build data directories and look into them."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

EXAMPLES = """examples (they work as printed, one after the other):
  flan-moe-data mini --out mini-flan --examples-per-task 100
  flan-moe-data tasks mini-flan
  flan-moe-data show mini-flan --task weekday --limit 2
  flan-moe-data show mini-flan --packed
  flan-moe-data verify mini-flan
"""

COMMANDS = (
    "mini",
    "fetch",
    "ingest",
    "build",
    "tasks",
    "mix",
    "pack",
    "show",
    "stats",
    "verify",
    "leaks",
    "convert",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    # A terminated build ends as an interrupted one does.
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a listing has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        print(f"flan-moe-data: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "flan-moe-data: interrupted; nothing unfinished has its final name, and the same "
            "command goes on with what was finished",
            file=sys.stderr,
        )
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _interrupt(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flan-moe-data",
        description="Build Flan instruction-tuning data and look into it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    for name in COMMANDS:
        import_module(f"flan_moe.data.commands.{name}").add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
