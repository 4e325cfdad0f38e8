"""``pack``: draw a mixture and pack it beforehand."""

from __future__ import annotations

import argparse
from typing import Literal

from flan_moe.data.commands.arguments import HelpFormatter

EXAMPLES = """examples that work as printed, after `flan-moe-data mini --out mini-flan`:
  flan-moe-data pack mini-flan --out packed --max-input-tokens 512 --max-target-tokens auto
  flan-moe-data verify packed
  flan-moe-data show packed --limit 1
  flan-moe-data pack mini-flan --out packed-a --mixture flan_palm_a --samples 2000 --epochs 2
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the sub-command."""
    pack = commands.add_parser(
        "pack",
        help="draw a mixture of a data directory and store it as packed rows",
        epilog=EXAMPLES,
        formatter_class=HelpFormatter,
    )
    pack.add_argument("directory", metavar="DIR", help="a data directory")
    pack.add_argument("--out", required=True, metavar="PACKED", help="the directory to make")
    pack.add_argument("--split", default="train", choices=("train", "validation"))
    what = pack.add_mutually_exclusive_group()
    what.add_argument("--mixture", metavar="SPEC", help="preset or .yaml file")
    what.add_argument(
        "--weights", nargs="+", metavar="NAME=NUMBER", help="weights of stored mixtures instead"
    )
    pack.add_argument(
        "--samples", type=int, metavar="N", help="examples in an epoch; without it, the natural one"
    )
    pack.add_argument("--epochs", type=int, default=1, metavar="N", help="how many to draw")
    pack.add_argument("--seed", type=int, default=0, help="of the draw")
    pack.add_argument(
        "--max-input-tokens", type=int, metavar="S", help="of a row; without it, as DIR was built"
    )
    pack.add_argument(
        "--max-target-tokens",
        type=_tokens_or_auto,
        metavar="L|auto",
        help="of a row; auto: the longest that is expected to be 80%% full",
    )
    pack.add_argument(
        "--overlong",
        default="truncate",
        choices=("truncate", "drop", "error"),
        help="what becomes of an example longer than a row",
    )
    pack.add_argument("--window", type=int, default=2048, metavar="N", help="packed at once")
    pack.add_argument("--overwrite", action="store_true", help="replace an older packed directory")
    pack.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from flan_moe.data.mixing.load import load_mixture
    from flan_moe.data.offline.pack import PackOptions, pack_directory

    keys = ("samples", "epochs", "split", "seed", "max_input_tokens", "max_target_tokens")
    keys += ("overlong", "window", "overwrite")
    options = PackOptions(
        weights=None if arguments.weights is None else _weights(arguments.weights),
        mixture=None if arguments.mixture is None else load_mixture(arguments.mixture),
        **{key: getattr(arguments, key) for key in keys},
    )
    pack_directory(arguments.directory, arguments.out, options)


def _tokens_or_auto(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number, or 'auto'") from None


def _weights(entries: list[str]) -> dict[str, float]:
    weights = {}
    for entry in entries:
        name, equals, number = entry.partition("=")
        try:
            weights[name] = float(number)
        except ValueError:
            equals = ""
        if not equals or not name:
            raise ValueError(f"--weights {entry!r}; expected NAME=NUMBER, such as niv2=0.5")
    return weights
