"""Statistics as one HTML page that needs nothing else: tables and inline SVG, no script."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from flan_moe.data.statistics.gather import QUANTILES, Statistics
from flan_moe.data.statistics.svg import Axis, line_plot, stacked_bars
from flan_moe.data.statistics.text import packing_lines

_STYLE = """
body { font: 14px/1.4 sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; }
td, th { padding: 0.15em 0.7em; text-align: right; border-bottom: 1px solid #ddd; }
td:first-child, th:first-child { text-align: left; }
svg { max-width: 100%; height: auto; margin: 1em 1em 1em 0; }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def statistics_page(statistics: Statistics) -> str:
    """The page; well-formed XML as well as HTML."""
    title = f"{statistics.name}: {statistics.split}"
    body = [
        f"<h1>{escape(title)}</h1>",
        "<h2>Token lengths</h2>",
        _histogram(statistics, "inputs"),
        _histogram(statistics, "targets"),
        _length_table(statistics),
        "<h2>Settings</h2>",
        _settings(statistics),
        "<h2>Packing</h2>",
        *(f"<p>{escape(line)}</p>" for line in packing_lines(statistics.packing)),
        "<h2>Tasks</h2>",
        _shares(statistics),
        _task_table(statistics),
    ]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en" xmlns="http://www.w3.org/1999/xhtml">',
            '<head><meta charset="utf-8"/>',
            f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}"/>',
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head>",
            "<body>",
            *body,
            "</body></html>",
            "",
        ]
    )


def _histogram(statistics: Statistics, side: str) -> str:
    """Share of each mixture's samples by length, as steps."""
    series: dict[str, list[tuple[float, float]]] = {}
    longest, highest = 2, 0.0
    for mixture in statistics.mixtures:
        buckets: Mapping[int, int] = getattr(mixture, f"{side.removesuffix('s')}_histogram")
        points, before = [], 1.0
        for end, count in buckets.items():
            share = count / mixture.total.count
            points += [(before, share), (float(end), share)]
            before, highest = float(end), max(highest, share)
        series[mixture.name] = points
        longest = max(longest, *buckets)
    return line_plot(
        f"Tokens of {side}",
        series,
        Axis(label="tokens", low=1, high=longest, logarithmic=True),
        Axis(label="share of the mixture's samples", low=0, high=highest * 1.05, percent=True),
    )


def _settings(statistics: Statistics) -> str:
    bars = {
        mixture.name: {kind: float(each.count) for kind, each in mixture.by_type.items()}
        for mixture in statistics.mixtures
    }
    return stacked_bars("Share of each setting in the samples", bars)


def _shares(statistics: Statistics) -> str:
    """Shares of the tasks by rank, each curve in its own order."""
    curves = {"stored": sorted((task.share for task in statistics.tasks), reverse=True)}
    if statistics.spec is not None:
        explained = (task.explained or 0.0 for task in statistics.tasks)
        curves[statistics.spec] = sorted((s for s in explained if s > 0), reverse=True)
    values = [share for curve in curves.values() for share in curve]
    low, high = min(values), max(values)
    return line_plot(
        "Share of each task by rank",
        {
            name: [(float(rank), share) for rank, share in enumerate(curve, start=1)]
            for name, curve in curves.items()
        },
        Axis(label="rank", low=1, high=max(2, len(statistics.tasks)), logarithmic=True),
        Axis(label="share", low=low / 1.5, high=high * 1.5, logarithmic=True, percent=True),
    )


def _length_table(statistics: Statistics) -> str:
    labels = [f"{quantile:.0%}" for quantile in QUANTILES]
    head = ["", "samples", *(f"{s} {label}" for s in ("input", "target") for label in labels)]
    rows = []
    for mixture in statistics.mixtures:
        for name, lengths in ((mixture.name, mixture.total), *mixture.by_type.items()):
            label = name if lengths is mixture.total else f"{mixture.name} {name}"
            numbers = (lengths.count, *lengths.inputs, *lengths.targets)
            rows.append([label, *(f"{number:,}" for number in numbers)])
    return _table(head, rows)


def _task_table(statistics: Statistics) -> str:
    explained = [] if statistics.spec is None else [statistics.spec]
    head = ["task", "mixture", "samples", "stored", *explained, "input tokens", "target tokens"]
    rows = [
        [
            task.name,
            task.mixture,
            f"{task.count:,}",
            f"{task.share:.3%}",
            *([] if task.explained is None else [f"{task.explained:.3%}"]),
            *(f"{mean:,.1f}" for mean in task.mean_tokens),
        ]
        for task in statistics.tasks
    ]
    return _table(head, rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "\n".join(["<table>", line(head, "th"), *(line(row, "td") for row in rows), "</table>"])
