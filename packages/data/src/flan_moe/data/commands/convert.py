"""``convert``: the samples of a data directory in the other format."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = """examples, with a directory that `flan-moe-data mini --out mini-flan` made:
  flan-moe-data convert mini-flan --to webdataset
  flan-moe-data convert mini-flan/webdataset/train/cot --to mds --out cot-shards
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the sub-command."""
    convert = commands.add_parser(
        "convert",
        help="make tars of the shards of a data directory, or shards of its tars",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    convert.add_argument(
        "directory", metavar="DIR", help="a data directory; with --out, one of shards or of tars"
    )
    convert.add_argument("--to", required=True, choices=("webdataset", "mds"))
    convert.add_argument(
        "--out", metavar="DIR", help="where samples without a data directory around them go"
    )
    convert.add_argument("--overwrite", action="store_true", help="replace tars that are there")
    convert.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from flan_moe.data.storage.convert import convert_data_directory, convert_samples

    if arguments.out is None:
        lines = convert_data_directory(
            arguments.directory, arguments.to, overwrite=arguments.overwrite
        )
        for line in lines:
            print(line)
        return
    if Path(arguments.directory, "manifest.json").exists():
        raise ValueError(
            f"{arguments.directory} is a data directory, which is converted in place; give one of "
            "its folders of samples, or leave out --out"
        )
    count = convert_samples(arguments.directory, arguments.to, arguments.out)
    print(f"{arguments.out}: {count} samples")
