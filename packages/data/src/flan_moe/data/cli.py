"""``flan-moe-data``: build data directories and look into them."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

EXAMPLES = """examples (they work as printed, one after the other):
  flan-moe-data mini --out mini-flan --examples-per-task 100
  flan-moe-data tasks mini-flan
  flan-moe-data show mini-flan --task weekday --limit 2
  flan-moe-data show mini-flan --packed
  flan-moe-data verify mini-flan
"""

BUILD_EXAMPLES = """example that works as printed:
  seq 99 | sed 's/.*/{"prompt": "Say & again.", "target": "&"}/' > echo.jsonl
  flan-moe-data build --jsonl echo.jsonl --vocab-size 300 --out echo-data

with checkouts of allenai/natural-instructions and google-research/FLAN:
  flan-moe-data build --natural-instructions natural-instructions/tasks \\
      --cot FLAN/flan/v2/cot_data --held-out cot_aqua \\
      @natural-instructions/splits/default/test_tasks.txt --out flan-data
"""


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults beside each option; the examples as they are written."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    # A terminated build cleans up as an interrupted one does.
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
        print("flan-moe-data: interrupted; nothing was left under the final name", file=sys.stderr)
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

    mini = commands.add_parser(
        "mini", help="build mini-Flan; nothing is downloaded", formatter_class=_HelpFormatter
    )
    mini.add_argument(
        "--examples-per-task", type=int, default=2000, metavar="N", help="to train on"
    )
    mini.add_argument(
        "--validation-per-task", type=int, default=50, metavar="N", help="for validation loss"
    )
    _add_build_arguments(mini, evaluation=100, vocab=2048, inputs=256, targets=48)
    mini.set_defaults(run=_mini)

    build = commands.add_parser(
        "build",
        help="build raw Natural Instructions, Flan chain-of-thought or jsonl files",
        epilog=BUILD_EXAMPLES,
        formatter_class=_HelpFormatter,
    )
    build.add_argument(
        "--natural-instructions", metavar="PATH", help="task file, or folder of task*.json"
    )
    build.add_argument("--cot", metavar="PATH", help="Flan CoT .tsv file, or folder of them")
    build.add_argument("--jsonl", metavar="PATH", help="prompt/target .jsonl file, or folder")
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
    _add_build_arguments(build, evaluation=50, vocab=16384, inputs=512, targets=128)
    build.set_defaults(run=_build)

    tasks = commands.add_parser("tasks", help="list the tasks of a data directory, or of mini-Flan")
    tasks.add_argument("directory", nargs="?", metavar="DIR")
    tasks.set_defaults(run=_tasks)

    show = commands.add_parser("show", help="print decoded examples, or a packed batch")
    show.add_argument("directory", metavar="DIR")
    show.add_argument("--task", metavar="NAME", help="default: the first task")
    show.add_argument("--split", default="train", choices=("train", "validation"))
    show.add_argument("--limit", type=int, default=3, metavar="N", help="examples or rows")
    show.add_argument("--packed", action="store_true", help="rows of the first training batch")
    show.set_defaults(run=_show)

    verify = commands.add_parser("verify", help="re-read everything and compare hashes")
    verify.add_argument("directory", metavar="DIR")
    verify.set_defaults(run=_verify)
    return parser


def _add_build_arguments(
    parser: argparse.ArgumentParser, *, evaluation: int, vocab: int, inputs: int, targets: int
) -> None:
    parser.add_argument("--out", required=True, metavar="DIR", help="the data directory to make")
    parser.add_argument(
        "--eval-per-task", type=int, default=evaluation, metavar="N", help="questions, at most"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--vocab-size", type=int, default=vocab, help="of the tokenizer trained")
    parser.add_argument("--max-input-tokens", type=int, default=inputs, help="budget of prompts")
    parser.add_argument("--max-target-tokens", type=int, default=targets, help="budget of targets")
    parser.add_argument("--webdataset", action="store_true", help="write the samples as tars too")
    parser.add_argument("--overwrite", action="store_true", help="replace an older data directory")


def _mini(arguments: argparse.Namespace) -> None:
    from flan_moe.data.build import BuildOptions, build_data_directory
    from flan_moe.data.mini_flan.sources import mini_flan_sources

    sources = mini_flan_sources(
        examples=arguments.examples_per_task,
        validation=arguments.validation_per_task,
        evaluation=arguments.eval_per_task,
        seed=arguments.seed,
    )
    source = f"generated by flan-moe-data mini, seed {arguments.seed}"
    options = BuildOptions(name="mini-flan", source=source, **_shared_options(arguments))
    build_data_directory(arguments.out, sources, options)


def _build(arguments: argparse.Namespace) -> None:
    from flan_moe.data.build import BuildOptions, build_data_directory
    from flan_moe.data.raw_sources import RawOptions, raw_sources

    paths = {
        key: getattr(arguments, key)
        for key in ("natural_instructions", "cot", "jsonl")
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
            **_shared_options(arguments),
        ),
    )


def _shared_options(arguments: argparse.Namespace) -> dict[str, int | bool]:
    keys = (
        "seed",
        "vocab_size",
        "max_input_tokens",
        "max_target_tokens",
        "webdataset",
        "overwrite",
    )
    return {key: getattr(arguments, key) for key in keys}


def _tasks(arguments: argparse.Namespace) -> None:
    if arguments.directory is None:
        from flan_moe.data.mini_flan import TASK_FAMILIES, group_of

        for family in TASK_FAMILIES:
            group = group_of(family).replace("_", " ")
            print(f"{family.name:<20} {family.mixture:<8} {group:<16} {family.kind}")
        return
    from flan_moe.data.manifest import read_manifest

    manifest = read_manifest(arguments.directory)
    width = max(len(task["name"]) for task in manifest.tasks)
    print(f"{'task':<{width}}  mixture   group            {'train':>7} {'valid.':>7} {'eval':>7}")
    for task in manifest.tasks:
        group = task["group"].replace("_", " ")
        counts = " ".join(f"{task[key]:>7}" for key in ("train", "validation", "eval"))
        print(f"{task['name']:<{width}}  {task['mixture']:<9} {group:<16} {counts}")


def _show(arguments: argparse.Namespace) -> None:
    from flan_moe.data.show import show_packed_batch, show_task

    if arguments.limit < 0:
        raise ValueError(f"limit is {arguments.limit}; expected 0 or more")
    if arguments.packed:
        show_packed_batch(arguments.directory, split=arguments.split, limit=arguments.limit)
    else:
        show_task(arguments.directory, arguments.task, split=arguments.split, limit=arguments.limit)


def _verify(arguments: argparse.Namespace) -> None:
    from flan_moe.data.verify import verify_data_directory

    for line in verify_data_directory(arguments.directory):
        print(line)


if __name__ == "__main__":
    sys.exit(main())
