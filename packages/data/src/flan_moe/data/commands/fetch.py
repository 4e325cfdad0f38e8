"""``fetch``: bring public raw data from the catalogue."""

from __future__ import annotations

import argparse

from flan_moe.data.commands.arguments import HelpFormatter

EXAMPLES = """examples:
  flan-moe-data fetch --list
  flan-moe-data fetch flan_cot gsm8k --out raw
  flan-moe-data fetch natural_instructions --only 'tasks/task00*' --out raw
  flan-moe-data fetch svamp --base-url http://localhost:8000/svamp --out raw

A run that was cut off goes on where it was. Every file is checked before it gets its name.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "fetch",
        help="bring public raw data, checked against a catalogue",
        epilog=EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="entries of the catalogue")
    parser.add_argument("--list", action="store_true", help="print the catalogue")
    parser.add_argument("--out", metavar="DIR", help="files go to DIR/NAME")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="PATTERN", help="only files of these names"
    )
    parser.add_argument(
        "--base-url", metavar="URL", help="a mirror, instead of the entry's address"
    )
    parser.add_argument(
        "--archive",
        nargs="?",
        const="",
        metavar="FILE_OR_URL",
        help="take the files out of a tar or zip archive of the repository; without a value, of "
        "the one that the code host packs",
    )
    parser.add_argument("--catalogue", metavar="FILE", help="an entry of your own, as JSON")
    parser.add_argument("--workers", type=int, default=8, metavar="N", help="files at a time")
    parser.add_argument("--tries", type=int, default=5, metavar="N", help="before giving up")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="without a byte")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from flan_moe.data.fetch.catalogue import entry_names, read_entry, read_entry_file
    from flan_moe.data.fetch.download import Patience
    from flan_moe.data.fetch.run import FetchOptions, fetch, fetch_from_archive

    if arguments.list:
        _list()
        return
    entries = [read_entry(name) for name in arguments.names]
    if arguments.catalogue is not None:
        entries.append(read_entry_file(arguments.catalogue))
    if not entries:
        raise ValueError(f"no NAME; expected one or more of {', '.join(entry_names())}")
    if arguments.out is None:
        raise ValueError("--out: missing; expected the directory to fetch to")
    if arguments.base_url is not None and len(entries) > 1:
        raise ValueError("--base-url is for one NAME; fetch the others apart")
    if arguments.archive and len(entries) > 1:
        raise ValueError("--archive is for one NAME; fetch the others apart")
    options = FetchOptions(
        base_url=arguments.base_url,
        only=tuple(arguments.only),
        workers=arguments.workers,
        patience=Patience(tries=arguments.tries, timeout=arguments.timeout),
    )
    for entry in entries:
        if arguments.archive is None:
            fetch(entry, arguments.out, options)
        else:
            archive = arguments.archive or entry.archive_url
            fetch_from_archive(entry, arguments.out, archive, options)


def _list() -> None:
    from flan_moe.data.fetch.catalogue import entry_names, read_entry

    rows = [("name", "files", "bytes", "licence", "what")]
    for name in entry_names():
        entry = read_entry(name)
        size = ("" if entry.sizes_known else "> ") + f"{entry.known_bytes:,}"
        what = entry.title + (" (evaluation only)" if entry.evaluation_only else "")
        rows.append((name, f"{len(entry.files):,}", size, entry.licence, what))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for name, number, size, licence, what in rows:
        print(
            f"{name:<{widths[0]}}  {number:>{widths[1]}}  {size:>{widths[2]}}  "
            f"{licence:<{widths[3]}}  {what}"
        )
