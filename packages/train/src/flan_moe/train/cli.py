"""Command line: ``flan-moe-train``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from flan_moe.train.interruption import (
    INTERRUPTED,
    TrainingDivergedError,
    TrainingInterruptedError,
)

EXAMPLES = """\
examples (they work as printed, one after the other; training takes minutes on two cores):
  flan-moe-data mini --out mini-flan                     # the data that ship with flan-moe
  flan-moe-train check mini_sparse data.path=mini-flan   # is the recipe possible?
  flan-moe-train run mini_sparse data.path=mini-flan --out runs/first
  flan-moe-train export runs/first models/first          # for AutoModelForSeq2SeqLM
  flan-moe-train quickstart --out quickstart-report      # all of it, and a report

exit status: 0 done; 1 failed; 2 refused (recipe, arguments, files); 75 stopped by SIGTERM or
SIGINT with the state saved: the same command continues.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse gives up on positional arguments behind an option: run RECIPE --out DIR key=value
    if any(r.startswith("-") for r in rest) or (rest and not hasattr(options, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    wait_passively()
    # Imported when a command runs: --help must not wait for torch.
    from flan_moe.train.recipe import RecipeError
    from flan_moe.train.run_folder import RunFolderError

    try:
        options.command(options)
    except (RecipeError, RunFolderError, FileExistsError) as error:
        print(f"flan-moe-train: {error}", file=sys.stderr)
        return 2
    except (OSError, TrainingDivergedError) as error:  # OSError: a full disk, a read-only folder
        print(f"flan-moe-train: {error}", file=sys.stderr)
        return 1
    except TrainingInterruptedError as error:
        print(f"flan-moe-train: {error}; run the same command to continue", file=sys.stderr)
        return INTERRUPTED
    except KeyboardInterrupt:  # outside training, where nothing waits to be saved
        return _interrupted(signal.SIGINT)
    except SystemExit as exit_:  # so Composer turns both signals, once it has been imported
        for number in (signal.SIGINT, signal.SIGTERM):
            if exit_.code == 128 + number:
                return _interrupted(number)
        raise
    return 0


def _interrupted(number: signal.Signals) -> int:
    print("flan-moe-train: interrupted; run the same command to continue", file=sys.stderr)
    return 128 + number


def wait_passively() -> None:
    """Have OpenMP's threads sleep while they wait, unless the environment says otherwise.

    By default they spin. When anything else runs on the same cores, a thread then spins away the
    time slice of the one it waits for: on two busy cores training was five to ten times slower. It
    must be set before torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flan-moe-train",
        description="Instruction-tune Flan-MoE models with Composer.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="train a recipe, or continue its run")
    _recipe_arguments(run)
    run.add_argument("--out", type=Path, help="run folder (default: runs/NAME of the recipe)")
    run.set_defaults(command=_run)

    check = commands.add_parser("check", help="say whether a recipe is possible, and what it is")
    _recipe_arguments(check)
    check.set_defaults(command=_check)

    export = commands.add_parser("export", help="write a run's model as a save_pretrained folder")
    export.add_argument("run", type=Path, help="run folder (its checkpoints must be your own)")
    export.add_argument("out", type=Path, help="folder to create")
    export.add_argument("--batch", type=int, help="checkpoint to take (default: the newest)")
    export.add_argument(
        "--average", type=int, default=1, metavar="N", help="average the last N checkpoints"
    )
    export.set_defaults(command=_export)

    quickstart = commands.add_parser(
        "quickstart", help="sparse against dense on a small scale: data, training, report"
    )
    quickstart.add_argument(
        "--out", type=Path, default=Path("quickstart-report"), help="folder (default: %(default)s)"
    )
    quickstart.add_argument(
        "--data", type=Path, help="raw Natural Instructions / Flan CoT data instead of mini-Flan"
    )
    quickstart.add_argument("--steps", type=int, help="optimizer steps per model")
    quickstart.set_defaults(command=_quickstart)
    return parser


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="YAML file, or the name of a recipe that ships along")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. optimizer.lr=3e-4 (value in YAML)"
    )


def _run(options: argparse.Namespace) -> None:
    from flan_moe.train.recipe import load_recipe
    from flan_moe.train.trainer import say, train

    loaded = load_recipe(options.recipe, options.overrides)
    out = options.out or Path("runs") / loaded.recipe.name
    summary = train(loaded, out)
    say(f"{out}: {summary['batches']} batches, {summary['tokens']:,} tokens")


def _check(options: argparse.Namespace) -> None:
    from flan_moe.model import count_parameters
    from flan_moe.train.preflight import check_recipe
    from flan_moe.train.recipe import as_yaml, load_recipe
    from flan_moe.train.trainer import say

    loaded = load_recipe(options.recipe, options.overrides)
    plan = check_recipe(loaded)
    count, rows = count_parameters(plan.config), plan.data.row_lengths(loaded.recipe)
    flops = rows.flops_per_token(plan.config)
    say(as_yaml(loaded.recipe))
    say(f"# parameters: {count.total:,} in all, {count.active:,} active per token")
    say(
        f"# forward pass: {flops.mean / 1e6:.2f} MFLOPs per token (mean of the two stacks; "
        f"{rows.describe()})"
    )
    say(f"# data: {plan.data.describe()}")
    for line in (plan.data.describe_mixture(), plan.data.cut_examples(loaded.recipe)):
        if line is not None:
            say(f"# {line}")


def _export(options: argparse.Namespace) -> None:
    from flan_moe.train.export import export_run
    from flan_moe.train.trainer import say

    out = export_run(options.run, options.out, batch=options.batch, average=options.average)
    say(f"{out}: written")


def _quickstart(options: argparse.Namespace) -> None:
    from flan_moe.train.quickstart import Quickstart, Settings
    from flan_moe.train.recipe import RecipeError

    raw = None if options.data is None else str(options.data)
    try:
        settings = Settings(raw_data=raw, steps=options.steps)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    Quickstart(options.out, settings).run()


if __name__ == "__main__":
    sys.exit(main())
