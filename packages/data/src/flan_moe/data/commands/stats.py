"""``stats``: token lengths, shares of tasks, and how a mixture packs."""

from __future__ import annotations

import argparse
from pathlib import Path

from flan_moe.data.commands.arguments import HelpFormatter

EXAMPLES = """examples that work as printed, after `flan-moe-data mini --out mini-flan`:
  flan-moe-data stats mini-flan
  flan-moe-data stats mini-flan --mixture flan_palm_a --max-input-tokens 512 --html stats.html
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the sub-command."""
    stats = commands.add_parser(
        "stats",
        help="token lengths, shares of tasks, and how a mixture packs",
        epilog=EXAMPLES,
        formatter_class=HelpFormatter,
    )
    stats.add_argument("directory", metavar="DIR", help="a data directory, or a packed one")
    stats.add_argument("--split", choices=("train", "validation"), help="without it, train")
    stats.add_argument(
        "--mixture", metavar="SPEC", help="preset or .yaml file: its shares beside those stored"
    )
    stats.add_argument(
        "--max-input-tokens", type=int, metavar="S", help="of a row; without it, as DIR was built"
    )
    stats.add_argument("--limit", type=int, default=8, metavar="N", help="top and bottom tasks")
    stats.add_argument("--html", metavar="OUT", help="write a page with plots and all tasks, too")
    stats.add_argument("--overwrite", action="store_true", help="replace an older page")
    stats.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from flan_moe.data.offline.manifest import is_packed, open_packed_directory
    from flan_moe.data.statistics.text import packed_lines, statistics_lines

    if arguments.limit < 1:
        raise ValueError(f"limit is {arguments.limit}; expected 1 or more")
    if is_packed(arguments.directory):
        keys = ("split", "mixture", "max_input_tokens", "html")
        given = [key for key in keys if getattr(arguments, key) is not None]
        if given:
            option = "--" + given[0].replace("_", "-")
            raise ValueError(f"{arguments.directory} holds packed rows: {option} is not for them")
        manifest, segments_R = open_packed_directory(arguments.directory)
        lines = packed_lines(manifest, segments_R.tolist(), limit=arguments.limit)
        print("\n".join(lines))
        return
    from flan_moe.data.mixing.load import load_mixture
    from flan_moe.data.statistics.gather import gather_statistics

    if arguments.html is not None and not arguments.overwrite and Path(arguments.html).exists():
        raise FileExistsError(
            f"{arguments.html} exists already; choose another place or pass --overwrite"
        )
    if arguments.html is not None and not Path(arguments.html).absolute().parent.is_dir():
        raise FileNotFoundError(f"{arguments.html}: its folder does not exist")  # before the work
    statistics = gather_statistics(
        arguments.directory,
        split=arguments.split or "train",
        spec=None if arguments.mixture is None else load_mixture(arguments.mixture),
        max_input_tokens=arguments.max_input_tokens,
    )
    for line in statistics_lines(statistics, limit=arguments.limit):
        print(line)
    if arguments.html is not None:
        from flan_moe.data.statistics.page import statistics_page

        _write(Path(arguments.html), statistics_page(statistics))
        print(f"\nwrote {arguments.html}")


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from error  # a full disk names none
    finally:
        partial.unlink(missing_ok=True)
