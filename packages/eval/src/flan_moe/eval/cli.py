"""The command ``flan-moe-eval``. Only ``run`` imports torch, only ``report`` matplotlib."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from flan_moe.eval.__about__ import __version__
from flan_moe.eval.suite import Mode

EXAMPLES = """\
examples (mini-flan is made by `flan-moe-data mini --out mini-flan`; model is a saved model):
  flan-moe-eval show mini-flan/eval
  flan-moe-eval show mini-flan/eval --task weekday --shots 2 --mode cot
  flan-moe-eval run --model model --suite mini-flan/eval --out runs/model --limit 20
  flan-moe-eval run --model model --suite mini-flan/eval --out runs/shots --shots 0 2 --mode direct
  flan-moe-eval show runs/model
  flan-moe-eval compare runs/model runs/shots
  flan-moe-eval report "model=runs/model" "shots=runs/shots" --out report
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; errors a user can mend are one message on standard error and status 2."""
    parser = _parser()
    args = parser.parse_args(argv)
    wait_passively()
    try:
        args.command(args)
    except BrokenPipeError:
        # The reader of our output has gone, as `| head` does. Not an error; but Python would
        # complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        print(f"flan-moe-eval: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nflan-moe-eval: interrupted", file=sys.stderr)
        return 130
    return 0


def wait_passively() -> None:
    """Have OpenMP's threads sleep while they wait, unless the environment says otherwise.

    By default they spin, and on cores that other programs use too a spinning thread takes the time
    of the one it waits for: generating on two busy cores was twenty times slower. It must be set
    before torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flan-moe-eval",
        description="Evaluate a language model on a suite of tasks, compare runs, write a report.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"flan-moe-eval {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands)
    _add_compare(commands)
    _add_report(commands)
    _add_show(commands)
    return parser


def _add_run(commands: argparse._SubParsersAction) -> None:
    run = commands.add_parser(
        "run",
        help="evaluate a model",
        description="Evaluate a model. Answers are logged as they come; the same command goes on "
        "where an interrupted one stopped.",
        epilog="example:\n  flan-moe-eval run --model model --suite mini-flan/eval --out "
        "runs/model --limit 20",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument(
        "--model", required=True, metavar="PATH", help="saved model, or its name on the hub"
    )
    run.add_argument(
        "--tokenizer", metavar="PATH", help="its tokenizer, if that is not with the model"
    )
    run.add_argument(
        "--suite", required=True, type=Path, metavar="DIR", help="folder with suite.json"
    )
    run.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder for results.json and samples"
    )
    run.add_argument(
        "--shots", nargs="+", type=int, default=[0], metavar="N", help="exemplars (default: 0)"
    )
    run.add_argument(
        "--mode",
        nargs="+",
        choices=get_args(Mode),
        default=list(get_args(Mode)),
        help="direct answers, chain of thought, or both (default)",
    )
    run.add_argument("--task", nargs="+", metavar="NAME", help="only these tasks")
    run.add_argument("--limit", type=int, metavar="N", help="first N items of each task")
    run.add_argument("--device", help='such as "cpu" or "cuda" (default: cuda if there is one)')
    run.add_argument("--dtype", default="float32", help="float32 (default), bfloat16 or float16")
    run.add_argument(
        "--max-tokens",
        type=int,
        metavar="N",
        help="longest prompt (causal model: prompt and answer)",
    )
    run.add_argument(
        "--token-budget", type=int, metavar="N", help="padded tokens per batch at most"
    )
    run.add_argument(
        "--direct-tokens", type=int, default=64, metavar="N", help="longest direct answer (64)"
    )
    run.add_argument(
        "--cot-tokens", type=int, default=256, metavar="N", help="longest chain of thought (256)"
    )
    run.add_argument(
        "--overwrite", action="store_true", help="replace logs of another model or setting in --out"
    )
    run.add_argument("--quiet", action="store_true", help="no progress")
    run.set_defaults(command=_run)


def _add_compare(commands: argparse._SubParsersAction) -> None:
    compare = commands.add_parser(
        "compare",
        help="compare two runs on the same items",
        description="Compare run B with run A, paired by item.",
        epilog="example:\n  flan-moe-eval compare runs/model runs/shots",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compare.add_argument("a", type=Path, metavar="A", help="folder of a run")
    compare.add_argument("b", type=Path, metavar="B", help="folder of another")
    compare.add_argument("--json", type=Path, metavar="FILE", help="write the comparison here too")
    compare.set_defaults(command=_compare)


def _add_report(commands: argparse._SubParsersAction) -> None:
    report = commands.add_parser(
        "report",
        help="write a page on one or more runs",
        description="Write index.html, complete in itself, with tables, plots and samples.",
        epilog='example:\n  flan-moe-eval report "model=runs/model" '
        '"shots=runs/shots" --out report',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    report.add_argument("runs", nargs="+", metavar="[LABEL=]RUN", help="folder of a run")
    report.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write")
    report.add_argument("--title", default="Evaluation", help="headline")
    report.add_argument("--note", action="append", default=[], help="a paragraph; may be repeated")
    report.add_argument(
        "--samples", type=int, default=5, metavar="N", help="samples shown per task (5)"
    )
    report.set_defaults(command=_report)


def _add_show(commands: argparse._SubParsersAction) -> None:
    show = commands.add_parser(
        "show",
        help="show a suite, one of its prompts, or the results of a run",
        description="Show a suite's tasks, a prompt as a model reads it, or a run's scores.",
        epilog="example:\n  flan-moe-eval show mini-flan/eval --task weekday --shots 2 --mode cot",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    show.add_argument("path", type=Path, metavar="PATH", help="folder of a suite or of a run")
    show.add_argument("--task", metavar="NAME", help="show a prompt of this task")
    show.add_argument("--item", type=int, default=1, metavar="N", help="its N-th item (1)")
    show.add_argument("--shots", type=int, default=0, metavar="N", help="exemplars (0)")
    show.add_argument("--mode", choices=get_args(Mode), default="direct", help="direct or cot")
    show.set_defaults(command=_show)


def _run(args: argparse.Namespace) -> None:
    from flan_moe.eval.console import results_text
    from flan_moe.eval.evaluation import evaluate
    from flan_moe.eval.plan import Decoding, plan_cells
    from flan_moe.eval.suite import load_suite

    suite = load_suite(args.suite)
    if args.task:
        suite = suite.select(tuple(args.task))
    decoding = Decoding(direct_tokens=args.direct_tokens, cot_tokens=args.cot_tokens)
    plan_cells(suite, shots=args.shots, modes=args.mode, limit=args.limit)
    blocked = next((p for p in (args.out, *args.out.parents) if p.exists()), args.out)
    if blocked.exists() and not blocked.is_dir():
        raise ValueError(f"--out: {args.out}; expected a folder, but {blocked} is a file")

    # Only now, because loading a model takes long and mistakes above should show at once.
    from flan_moe.eval.adapters.loading import load_language_model

    lm = load_language_model(
        args.model,
        tokenizer=args.tokenizer,
        device=args.device,
        dtype=args.dtype,
        max_tokens=args.max_tokens,
        token_budget=args.token_budget,
    )
    results = evaluate(
        lm,
        suite,
        shots=args.shots,
        modes=args.mode,
        limit=args.limit,
        out_dir=args.out,
        progress=not args.quiet,
        model_name=str(args.model),
        decoding=decoding,
        overwrite=args.overwrite,
    )
    print(results_text(results))
    print(f"\n{args.out / 'results.json'}")


def _compare(args: argparse.Namespace) -> None:
    from flan_moe.eval.compare import compare_runs
    from flan_moe.eval.console import comparison_text
    from flan_moe.eval.files import write_text
    from flan_moe.eval.run import load_run

    comparison = compare_runs(
        load_run(args.a, label=str(args.a)), load_run(args.b, label=str(args.b))
    )
    print(comparison_text(comparison))
    if args.json:
        write_text(args.json, comparison.to_json())


def _report(args: argparse.Namespace) -> None:
    from flan_moe.eval.report import write_report
    from flan_moe.eval.run import load_run

    runs = []
    for entry in args.runs:
        label, equals, folder = entry.partition("=")
        runs.append(load_run(folder, label=label) if equals else load_run(entry))
    index = write_report(
        args.out, runs=runs, title=args.title, notes=args.note, samples_per_task=args.samples
    )
    print(index)


def _show(args: argparse.Namespace) -> None:
    from flan_moe.eval.console import results_text, suite_text
    from flan_moe.eval.results import Results
    from flan_moe.eval.suite import load_suite

    if (args.path / "results.json").is_file():
        print(results_text(Results.load(args.path)))
        return
    suite = load_suite(args.path)
    if args.task is None:
        print(suite_text(suite))
        return
    from flan_moe.eval.prompts import build_prompt

    task = suite.select((args.task,)).tasks[0]
    if not 1 <= args.item <= len(task.items):
        raise ValueError(f"--item: {args.item}; task {task.name!r} has {len(task.items)} items")
    item = task.items[args.item - 1]
    print(build_prompt(task, item, shots=args.shots, mode=args.mode))
    print(f"\n[item {item.id}, target: {item.target}]")


if __name__ == "__main__":
    sys.exit(main())
