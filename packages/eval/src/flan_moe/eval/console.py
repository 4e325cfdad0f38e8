"""Tables for the terminal, as plain text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from flan_moe.eval.compare import Comparison
from flan_moe.eval.results import Results
from flan_moe.eval.statistics import Interval
from flan_moe.eval.suite import GROUP_NAMES, Suite

_NUMERIC = re.compile(r"[-+.\de ]*")


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned by content: numbers to the right, words to the left."""
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    numeric = [all(_NUMERIC.fullmatch(row[at]) for row in rows) for at in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        )
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(head), rule, *(line(row) for row in rows)])


def results_text(results: Results) -> str:
    """Group means, then tasks, each with 95 % intervals."""
    groups = [
        (
            GROUP_NAMES[group.group],
            f"{group.shots}-shot {group.mode}",
            str(len(group.tasks)),
            _percent(group.score),
            _interval(group.over_items),
            "-" if group.over_tasks is None else _interval(group.over_tasks),
            _percent(group.chance),
            f"{group.normalized:.1f}",
            _percent(group.parse_failure_rate),
        )
        for group in results.groups
    ]
    tasks = [
        (
            score.task,
            GROUP_NAMES[score.group],
            f"{score.shots}-shot {score.mode}",
            str(score.n),
            _percent(score.score),
            _interval(score.interval),
            _percent(score.chance),
            f"{score.normalized:.1f}",
            _percent(score.parse_failures / score.n),
            "" if score.mean_output_tokens is None else f"{score.mean_output_tokens:.1f}",
        )
        for score in results.tasks
    ]
    limit = "" if results.limit is None else f", at most {results.limit} items per task"
    parts = [
        f"{results.model or 'model'} on {results.suite}{limit}; scores in percent",
        format_table(
            (
                *("group", "setting", "tasks", "mean", "95 % over items", "95 % over tasks"),
                *("chance", "normalized", "unreadable"),
            ),
            groups,
        ),
        format_table(
            (
                *("task", "group", "setting", "n", "score", "95 % interval", "chance"),
                *("normalized", "unreadable", "tokens"),
            ),
            tasks,
        ),
    ]
    dropped = sum(score.exemplars_dropped for score in results.tasks)
    cut = sum(score.prompts_truncated for score in results.tasks)
    if dropped or cut:
        parts.append(f"{dropped} exemplars did not fit and were dropped; {cut} prompts were cut.")
    return "\n\n".join(parts)


def comparison_text(comparison: Comparison) -> str:
    """Differences of group means, then of tasks."""
    groups = [
        (
            GROUP_NAMES[group.group],
            f"{group.shots}-shot {group.mode}",
            str(len(group.tasks)),
            f"{100 * group.difference:+.1f}",
            _interval(group.over_items),
            "-" if group.over_tasks is None else _interval(group.over_tasks),
        )
        for group in comparison.groups
    ]
    tasks = [
        (
            task.task,
            GROUP_NAMES[task.group],
            f"{task.shots}-shot {task.mode}",
            str(task.difference.n),
            _percent(task.score_a),
            _percent(task.score_b),
            f"{100 * task.difference.mean:+.1f}",
            _interval(task.difference.interval),
            str(task.difference.wins),
            str(task.difference.losses),
            f"{task.difference.p_value:.3g}",
        )
        for task in comparison.tasks
    ]
    parts = [
        f"A: {comparison.label_a}\nB: {comparison.label_b}\nB minus A on the same items, in "
        "percentage points",
        format_table(
            ("group", "setting", "tasks", "B - A", "95 % over items", "95 % over tasks"), groups
        ),
        format_table(
            (
                *("task", "group", "setting", "n", "A", "B", "B - A", "95 % interval"),
                *("wins", "losses", "p"),
            ),
            tasks,
        ),
    ]
    for label, keys in (("A", comparison.only_a), ("B", comparison.only_b)):
        if keys:
            listed = ", ".join(f"{key.task} {key.shots}-shot {key.mode}" for key in keys)
            parts.append(f"Only in {label}: {listed}")
    return "\n\n".join(parts)


def suite_text(suite: Suite) -> str:
    """The tasks of a suite."""
    rows = [
        (
            task.name,
            GROUP_NAMES[task.group],
            task.mixture,
            task.kind,
            " ".join(task.modes),
            str(len(task.items)),
            str(len(task.exemplars)),
            _percent(task.chance),
        )
        for task in suite.tasks
    ]
    head = ("task", "group", "mixture", "kind", "modes", "items", "exemplars", "chance")
    return f"{suite.name}: {suite.source}\n\n{format_table(head, rows)}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _interval(interval: Interval) -> str:
    return f"{100 * interval.low:.1f} .. {100 * interval.high:.1f}"
