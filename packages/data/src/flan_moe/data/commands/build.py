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

with sets for Muffin and T0-SF as well, and the four settings of Muffin's prompts in other shares:
  flan-moe-data build --muffin sets --t0-sf promptsource-and-rows --cot FLAN/flan/v2/cot_data \\
      --input-inversion --settings muffin:zs_opt=2,fs_opt=2,zs_noopt=1,fs_noopt=1 --out flan-four
"""

PATHS = (
    "natural_instructions",
    "cot",
    "cot_stand_ins",
    "muffin",
    "t0_sf",
    "jsonl",
    "templated",
)


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the sub-command."""
    build = commands.add_parser(
        "build",
        help="build raw instruction data: files and folders of several formats",
        epilog=EXAMPLES,
        formatter_class=HelpFormatter,
    )
    build.add_argument(
        "--natural-instructions",
        metavar="PATH",
        help="task file, folder of task*.json, or .jsonl(.gz|.xz) with a task per line; this, "
        "--cot and --jsonl also as an address that fsspec opens",
    )
    build.add_argument("--cot", metavar="PATH", help="Flan CoT .tsv file, or folder of them")
    build.add_argument(
        "--cot-stand-ins", metavar="DIR", help="e-SNLI and QED files, for the CoT tasks of those"
    )
    build.add_argument(
        "--muffin",
        metavar="DIR",
        help="sets of Muffin tasks: files of LLM-Adapters, O-LoRA, ARC, BoolQ and DrRepair",
    )
    build.add_argument(
        "--t0-sf",
        metavar="DIR",
        help="promptsource templates.yaml files, with rows in DATASET[/SUBSET]/train*.jsonl",
    )
    build.add_argument("--jsonl", metavar="PATH", help="prompt/target .jsonl(.gz) file, or folder")
    build.add_argument("--templated", metavar="SPOOL", help="what ingest made of templated dumps")
    build.add_argument(
        "--held-out",
        nargs="+",
        default=[],
        metavar="NAME",
        help="tasks to evaluate and not train on; @FILE takes those named in a file, one per line, "
        "@SET those that overlap with an evaluation set, @evaluation with any",
    )
    build.add_argument(
        "--stand-ins",
        action="store_true",
        help="a --muffin set without a file to train on takes its test or development file",
    )
    build.add_argument(
        "--input-inversion",
        action="store_true",
        help="every CoT task gets an inverted twin, cot_input_inversion_NAME",
    )
    build.add_argument(
        "--settings",
        nargs="+",
        default=[],
        metavar="MIXTURE:SETTING=SHARE,...",
        help="shares of zs_opt, fs_opt, zs_noopt, fs_noopt among a mixture's prompts; for the "
        "mixtures not named, those of the Flan collection",
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
    from flan_moe.data.forms.shares import chosen_shares
    from flan_moe.data.sources.raw import RawOptions, raw_sources

    paths = {key: getattr(arguments, key) for key in PATHS if getattr(arguments, key) is not None}
    options = RawOptions(
        evaluation=arguments.eval_per_task,
        validation=arguments.validation_per_task,
        examples=arguments.examples_per_task,
        seed=arguments.seed,
        shares=chosen_shares(arguments.settings),
    )
    sources = raw_sources(
        options,
        held_out=arguments.held_out,
        stand_ins=arguments.stand_ins,
        inversion=arguments.input_inversion,
        **paths,
    )
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
