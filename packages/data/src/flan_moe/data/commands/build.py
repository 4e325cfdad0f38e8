"""``build``: build a data directory from raw files."""

from __future__ import annotations

import argparse
from pathlib import Path

from flan_moe.data.commands.arguments import HelpFormatter, add_build_arguments, shared_options

EXAMPLES = """example that works as printed:
  seq 99 | sed 's/.*/{"prompt": "Say & again.", "target": "&"}/' > echo.jsonl
  flan-moe-data build --jsonl echo.jsonl --vocab-size 300 --out echo-data

with checkouts of allenai/natural-instructions and google-research/FLAN:
  flan-moe-data build --natural-instructions natural-instructions/tasks \\
      --cot FLAN/flan/v2/cot_data --held-out cot_aqua \\
      @natural-instructions/splits/default/test_tasks.txt --out flan-data
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the sub-command."""
    build = commands.add_parser(
        "build",
        help="build raw Natural Instructions, Flan chain-of-thought or jsonl files",
        epilog=EXAMPLES,
        formatter_class=HelpFormatter,
    )
    build.add_argument(
        "--natural-instructions",
        metavar="PATH",
        help="task file, or folder of task*.json; this and "
        "the next two also as an address that fsspec opens",
    )
    build.add_argument("--cot", metavar="PATH", help="Flan CoT .tsv file, or folder of them")
    build.add_argument("--jsonl", metavar="PATH", help="prompt/target .jsonl(.gz) file, or folder")
    build.add_argument("--templated", metavar="SPOOL", help="what ingest made of templated dumps")
    build.add_argument(
        "--held-out",
        nargs="+",
        default=[],
        metavar="NAME",
        help="tasks to evaluate and not train on; @FILE takes those named in a file, one per line",
    )
    build.add_argument("--examples-per-task", type=int, default=5000, metavar="N", help="at most")
    build.add_argument("--validation-per-task", type=int, default=20, metavar="N", help="at most")
    build.add_argument(
        "--tokenizer", metavar="NAME_OR_PATH", help="use this tokenizer instead of training one"
    )
    add_build_arguments(build, evaluation=50, vocab=16384, inputs=512, targets=128)
    build.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from flan_moe.data.build import BuildOptions, build_data_directory
    from flan_moe.data.raw_sources import RawOptions, raw_sources

    paths = {
        key: getattr(arguments, key)
        for key in ("natural_instructions", "cot", "jsonl", "templated")
        if getattr(arguments, key) is not None
    }
    options = RawOptions(
        evaluation=arguments.eval_per_task,
        validation=arguments.validation_per_task,
        examples=arguments.examples_per_task,
        seed=arguments.seed,
    )
    sources = raw_sources(options, held_out=arguments.held_out, **paths)
    build_data_directory(
        arguments.out,
        sources,
        BuildOptions(
            name="+".join(paths),
            source=", ".join(f"{key}: {Path(path).name}" for key, path in paths.items()),
            tokenizer=arguments.tokenizer,
            **shared_options(arguments),
        ),
    )
