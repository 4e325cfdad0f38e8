"""``leaks``: which training samples of a data directory show evaluation questions."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from flan_moe.data.commands.arguments import HelpFormatter

if TYPE_CHECKING:
    from flan_moe.data.leaks import EvaluationItem

EXAMPLE = """formats: mmlu, bbh, gsm8k, svamp, asdiv, strategyqa, arc, boolq: the published files;
suite: a flan-moe-eval suite; jsonl: lines with "question" or "input"

example that works as printed, after `flan-moe-data mini --out mini-flan`:
  flan-moe-data leaks mini-flan --against suite=mini-flan/eval
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the sub-command."""
    leaks = commands.add_parser(
        "leaks",
        help="find evaluation questions among the training samples",
        epilog=EXAMPLE,
        formatter_class=HelpFormatter,
    )
    leaks.add_argument("directory", metavar="DIR", help="a data directory")
    leaks.add_argument(
        "--against",
        required=True,
        nargs="+",
        metavar="FORMAT=PATH",
        help="evaluation data to look for",
    )
    leaks.add_argument("--ngram", type=int, default=13, metavar="N", help="words of a run")
    leaks.add_argument(
        "--shortest",
        type=int,
        default=8,
        metavar="N",
        help="questions with fewer words are found only as a line of their own",
    )
    leaks.add_argument("--out", metavar="REPORT", help="folder for the report and every leak")
    leaks.add_argument("--overwrite", action="store_true", help="replace an older report")
    leaks.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from flan_moe.data.leaks import EvaluationIndex, LeakReport, scan, write_report
    from flan_moe.data.leaks.report import REPORT_FILE
    from flan_moe.data.leaks.training import training_samples, training_texts
    from flan_moe.data.storage.staging import check_output_directory

    if arguments.out is not None:
        check_output_directory(arguments.out, overwrite=arguments.overwrite, marker=REPORT_FILE)
    items = [item for entry in arguments.against for item in _evaluation(entry)]
    index = EvaluationIndex.build(items, n=arguments.ngram, shortest=arguments.shortest)
    leaks = list(scan(training_texts(arguments.directory), index))
    report = LeakReport.of(leaks, index, training_samples(arguments.directory))
    print(report.table(), end="")
    if arguments.out is not None:
        write_report(report, arguments.out, overwrite=arguments.overwrite)
        print(f"\nwrote {arguments.out}")


def _evaluation(entry: str) -> list[EvaluationItem]:
    from flan_moe.data.leaks import EVALUATION_FORMATS, read_evaluation

    name, equals, path = entry.partition("=")
    if not equals or name not in EVALUATION_FORMATS:
        raise ValueError(
            f"--against {entry!r}; expected FORMAT=PATH with one of {', '.join(EVALUATION_FORMATS)}"
        )
    return read_evaluation(name, path)
