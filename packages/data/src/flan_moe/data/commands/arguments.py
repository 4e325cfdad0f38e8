"""Arguments that several sub-commands share."""

from __future__ import annotations

import argparse
import os


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults beside each option; the examples as they are written."""


def add_build_arguments(
    parser: argparse.ArgumentParser, *, evaluation: int, vocab: int, inputs: int, targets: int
) -> None:
    """What ``mini`` and ``build`` have in common, with their own defaults."""
    parser.add_argument("--out", required=True, metavar="DIR", help="the data directory to make")
    parser.add_argument(
        "--eval-per-task", type=int, default=evaluation, metavar="N", help="questions, at most"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--vocab-size", type=int, default=vocab, help="of the tokenizer trained")
    parser.add_argument(
        "--tokenizer-model",
        choices=("bpe", "unigram"),
        default="bpe",
        help="kind trained: on bytes, or SentencePiece's (with flan-moe-data[sentencepiece])",
    )
    parser.add_argument("--max-input-tokens", type=int, default=inputs, help="budget of prompts")
    parser.add_argument("--max-target-tokens", type=int, default=targets, help="budget of targets")
    parser.add_argument("--webdataset", action="store_true", help="write the samples as tars too")
    parser.add_argument("--overwrite", action="store_true", help="replace an older data directory")
    parser.add_argument(
        "--workers",
        type=int,
        default=usable_cores(),
        metavar="N",
        help="processes; 0 works in this one; the bytes are the same",
    )
    parser.add_argument(
        "--restart", action="store_true", help="discard what a stopped build of DIR has finished"
    )


def shared_options(arguments: argparse.Namespace) -> dict[str, int | bool | str]:
    """The values of those arguments, as keywords of `BuildOptions`."""
    keys = (
        "seed",
        "vocab_size",
        "tokenizer_model",
        "max_input_tokens",
        "max_target_tokens",
        "webdataset",
        "overwrite",
        "workers",
        "restart",
    )
    return {key: getattr(arguments, key) for key in keys}


def usable_cores() -> int:
    """Cores of this process, at most 8, as each worker needs memory; 0 where forking is risky."""
    return min(len(os.sched_getaffinity(0)), 8) if hasattr(os, "sched_getaffinity") else 0
