"""``mix``: what a mixture consists of, before anything is built."""

from __future__ import annotations

import argparse

from flan_moe.data.commands.arguments import HelpFormatter

EXAMPLES = """examples that work as printed:
  flan-moe-data mix
  flan-moe-data mix flan_palm_a
  flan-moe-data mix --explain flan2022_clean --samples 200000
  flan-moe-data mix --explain cot --csv

with a data directory, its tasks and sizes count instead of the registered ones:
  flan-moe-data mix --explain flan2022 DIR
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the sub-command."""
    mix = commands.add_parser(
        "mix",
        help="explain a mixture: rate, share and expected epochs of every task",
        epilog=EXAMPLES,
        formatter_class=HelpFormatter,
    )
    mix.add_argument(
        "spec", nargs="?", metavar="SPEC", help="preset or .yaml file; without it, list the presets"
    )
    mix.add_argument(
        "directory", nargs="?", metavar="DIR", help="data directory to take sizes from"
    )
    mix.add_argument(
        "--explain", action="store_true", help="every task, not only the sums of sub-mixtures"
    )
    mix.add_argument(
        "--samples", type=int, default=1_000_000, metavar="N", help="how many to divide among tasks"
    )
    form = mix.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="everything, as JSON")
    form.add_argument("--csv", action="store_true", help="the tasks, as CSV")
    mix.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from flan_moe.data.mixing.load import load_mixture, preset_names

    if arguments.spec is None:
        for name in preset_names():
            print(f"{name:<16} {load_mixture(name).description}")
        return
    import json

    from flan_moe.data.mixing.explain import explain_mixture
    from flan_moe.data.mixing.explain_text import (
        explanation_csv,
        explanation_lines,
        explanation_record,
    )
    from flan_moe.data.mixing.sizes import directory_sizes, registered_sizes, without_size
    from flan_moe.data.registry import load_registry

    spec = load_mixture(arguments.spec)
    registry = load_registry()
    if arguments.directory is None:
        sizes, unknown = registered_sizes(registry), without_size(spec, registry)
    else:
        sizes, unknown = directory_sizes(arguments.directory), ()
    explanation = explain_mixture(
        spec, sizes, samples=arguments.samples, registry=registry, unknown=unknown
    )
    if arguments.json:
        print(json.dumps(explanation_record(explanation), indent=1, ensure_ascii=False))
    elif arguments.csv:
        print(explanation_csv(explanation), end="")
    else:
        for line in explanation_lines(explanation, tasks=arguments.explain):
            print(line)
