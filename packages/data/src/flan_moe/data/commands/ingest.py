"""``ingest``: sort templated dumps by task."""

from __future__ import annotations

import argparse
import sys
from collections import Counter

from flan_moe.data.commands.arguments import HelpFormatter

EXAMPLES = """example that works as printed:
  seq 99 | sed 's/.*/{"inputs": "Say & again.", "targets": "&", "task": "echo"}/' \\
      > flan_zs_opt_train.jsonl
  flan-moe-data ingest --from flan_zs_opt_train.jsonl --out echo-spool
  flan-moe-data build --templated echo-spool --vocab-size 300 --out echo-templated

from folders, web servers and stores, with several processes:
  flan-moe-data ingest --from FLAN/ s3://bucket/flan_v2/ hf://datasets/NAME/data/ \\
      --workers 8 --out spool
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "ingest",
        help="sort templated Flan or P3 dumps by task, for build --templated",
        epilog=EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--from",
        dest="locations",
        nargs="+",
        required=True,
        metavar="LOCATION",
        help="parquet, jsonl or jsonl.gz files, or folders of them; paths, http(s)://, s3://, "
        "gs://, hf:// and whatever else fsspec opens",
    )
    parser.add_argument(
        "--out", required=True, metavar="SPOOL", help="the directory to make, or to go on with"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes; one per CPU if not set"
    )
    parser.add_argument(
        "--split", nargs="+", default=["train"], metavar="NAME", help="splits whose rows are kept"
    )
    parser.add_argument("--mixture", metavar="NAME", help="of rows that do not tell theirs")
    parser.add_argument("--template-type", metavar="NAME", help="of rows that do not tell theirs")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from flan_moe.data.readers.layouts import FlanNaming
    from flan_moe.data.spool.ingest import ingest
    from flan_moe.data.spool.options import IngestOptions

    naming = FlanNaming(mixture=arguments.mixture, setting=arguments.template_type)
    options = IngestOptions(naming=naming, splits=tuple(arguments.split), workers=arguments.workers)
    result = ingest(arguments.locations, arguments.out, options)
    mixtures: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    for (mixture, _), rows in result.tasks.items():
        mixtures[mixture] += rows
        numbers[mixture] += 1
    for mixture, rows in sorted(mixtures.items()):
        print(f"{mixture}: {numbers[mixture]} tasks, {rows:,} rows")
    print(f"read {result.read:,} rows of {result.files} files, kept {result.kept:,}")
    for reason, rows in result.dropped.items():
        print(f"left out: {rows:,} ({reason})")
    print(f"wrote {arguments.out}", file=sys.stderr)
