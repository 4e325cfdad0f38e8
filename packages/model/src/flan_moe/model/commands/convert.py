"""``flan-moe-model convert``: checkpoints of transformers and T5X, to Flan-MoE and back."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from flan_moe.model.commands.arguments import positive
from flan_moe.model.commands.configuration import find_config
from flan_moe.model.commands.progress import ByteProgress

_DESCRIPTION = """\
Convert a checkpoint without holding it in memory. SRC is a directory of transformers' T5 or Switch
Transformers (safetensors or pytorch_model.bin), a Flan-MoE directory, or one flat .npz or
.safetensors file of T5X arrays named target/...; a T5X or Orbax directory has to be exported to
such a file first. DST must not exist.
"""


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of the program."""
    parser = commands.add_parser(
        "convert", help="convert from and to transformers, from T5X", description=_DESCRIPTION
    )
    parser.add_argument("source", metavar="SRC", help="checkpoint to read")
    parser.add_argument("destination", metavar="DST", help="directory to make")
    parser.add_argument(
        "--to",
        choices=("flan-moe", "hf-switch", "hf-t5"),
        default="flan-moe",
        help="layout to write (default: flan-moe)",
    )
    parser.add_argument(
        "--config",
        metavar="PRESET|PATH",
        help="configuration for T5X arrays, which have none: a preset, or a directory with "
        "config.json",
    )
    parser.add_argument(
        "--shard-bytes",
        type=positive,
        default=5 * 10**9,
        metavar="N",
        help="most bytes in one file (default: 5000000000)",
    )
    parser.set_defaults(run=_convert)


def _convert(options: argparse.Namespace) -> int:
    from flan_moe.model.convert import convert

    done = convert(
        options.source,
        options.destination,
        to=options.to,
        config=None if options.config is None else find_config(options.config),
        shard_bytes=options.shard_bytes,
        progress=ByteProgress("converted"),
    )
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    print(
        f"{options.destination}: {done.source_layout} to {done.target_layout}, "
        f"{done.num_tensors} tensors, {done.num_bytes:,} bytes"
    )
    return 0
