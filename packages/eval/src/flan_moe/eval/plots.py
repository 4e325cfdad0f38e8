"""The report's figures, as PNG bytes. Nothing here needs a display or touches pyplot's state."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flan_moe.eval.report_inputs import Heatmap, Point, Series
from flan_moe.eval.results import TaskScore
from flan_moe.eval.run import Run
from flan_moe.eval.statistics import Interval
from flan_moe.eval.suite import GROUP_NAMES, Mode

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Transform

# Okabe and Ito's palette, told apart with any kind of colour vision; black is kept for text.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999")
INK = "#22272e"
GRID = "#e4e7eb"
DPI = 150
CHANCE = "chance"
LEAST_SPREAD = 0.1
"""Width of a scatter plot's x axis at least, as a share of its largest value."""


def run_color(position: int) -> str:
    """The colour of the run at a position; tables and plots share it."""
    return COLORS[position % len(COLORS)]


@dataclass(frozen=True)
class _Bar:
    """A value with its interval, both as shares."""

    score: float
    interval: Interval


def plot_group_means(runs: Sequence[Run]) -> bytes:
    """Bars of the group means of every run, with their 95 % intervals over items."""
    found = [
        {(g.group, g.shots, g.mode): _Bar(g.score, g.over_items) for g in run.results.groups}
        for run in runs
    ]
    rows = {
        key: f"{GROUP_NAMES[key[0]]}, {key[1]}-shot {key[2]}"
        for key in dict.fromkeys(key for bars in found for key in bars)
    }
    figure, _ = _bars(runs, found, rows)
    return _png(figure)


def plot_tasks(runs: Sequence[Run], *, shots: int, mode: Mode) -> bytes:
    """Bars of every task at one setting, with 95 % intervals and chance marks."""
    scores = [
        {s.task: s for s in run.results.tasks if (s.shots, s.mode) == (shots, mode)} for run in runs
    ]
    tasks: dict[str, TaskScore] = {}
    for by_name in reversed(scores):
        tasks |= by_name
    # Held-out tasks on top, because they are what instruction tuning is judged by.
    groups = list(GROUP_NAMES)
    order = sorted(tasks, key=lambda name: (groups.index(tasks[name].group), name))
    figure, axes = _bars(
        runs,
        [{name: _Bar(s.score, s.interval) for name, s in by_name.items()} for by_name in scores],
        {name: f"{_short(name)} ({GROUP_NAMES[tasks[name].group]})" for name in order},
    )
    for at, name in enumerate(order):
        axes.plot(
            [100 * tasks[name].chance] * 2,
            [at - 0.45, at + 0.45],
            color=INK,
            linewidth=1.1,
            linestyle=(0, (2, 1.5)),
            label=CHANCE if at == 0 else None,
        )
    _legend(axes)
    return _png(figure)


def _bars(
    runs: Sequence[Run], found: Sequence[Mapping[Any, _Bar]], rows: Mapping[Any, str]
) -> tuple[Figure, Axes]:
    """Horizontal bars: a row per key of ``rows``, in it a bar per run that has the key."""
    figure, axes = _figure(width=7.6, height=1.0 + len(rows) * (0.16 + 0.17 * len(runs)))
    thickness = 0.8 / len(runs)
    for position, (run, bars) in enumerate(zip(runs, found, strict=True)):
        shown = [(at, bars[key]) for at, key in enumerate(rows) if key in bars]
        axes.barh(
            [at + (position - (len(runs) - 1) / 2) * thickness for at, _ in shown],
            [100 * bar.score for _, bar in shown],
            height=0.92 * thickness,
            xerr=[
                [100 * max(0.0, bar.score - bar.interval.low) for _, bar in shown],
                [100 * max(0.0, bar.interval.high - bar.score) for _, bar in shown],
            ],
            color=run_color(position),
            label=run.label,
            error_kw={"elinewidth": 0.9, "capsize": 1.8, "ecolor": INK},
        )
    axes.set_yticks(range(len(rows)), rows.values())
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("score (%)")
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    _legend(axes)
    return figure, axes


def plot_series(series: Sequence[Series]) -> bytes:
    """Curves of one group in one figure."""
    figure, axes = _figure(width=7.0, height=3.6)
    for position, curve in enumerate(series):
        axes.plot(
            curve.x,
            curve.y,
            label=curve.name,
            color=run_color(position),
            linewidth=1.6,
            linestyle=("-", "--", ":")[position // len(COLORS) % 3],
            marker="o" if len(curve.x) == 1 else None,
        )
    axes.set_xlabel(series[0].x_label)
    axes.set_ylabel(series[0].y_label)
    _legend(axes)
    return _png(figure)


def plot_heatmap(heatmap: Heatmap) -> bytes:
    """A matrix with its values written in, where there is room for them."""
    rows, columns = len(heatmap.row_labels), len(heatmap.column_labels)
    figure, axes = _figure(
        width=min(13.0, 2.6 + 0.55 * columns), height=min(12.0, 1.9 + 0.42 * rows)
    )
    image = axes.imshow(heatmap.values, cmap="viridis", aspect="auto", vmin=0)
    axes.set_xticks(range(columns), heatmap.column_labels)
    axes.set_yticks(range(rows), heatmap.row_labels)
    axes.set_xlabel(heatmap.column_name)
    axes.set_ylabel(heatmap.row_name)
    axes.grid(visible=False)
    if columns <= 24:
        middle = image.norm.vmax / 2
        for row, values in enumerate(heatmap.values):
            for column, value in enumerate(values):
                axes.text(
                    *(column, row, f"{value:.2g}"),
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color="white" if value < middle else "black",
                )
    # Below, because its name is wider than a map of few rows is high.
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.6, aspect=50)
    bar.set_label(heatmap.value_label)
    bar.outline.set_visible(False)
    return _png(figure)


def plot_points(points: Sequence[Point]) -> bytes:
    """A scatter plot of one group.

    Marks at nearly the same x are drawn side by side: models compared at equal compute would
    otherwise hide each other. The x axis spans a tenth of its largest value at least, so that
    nearly equal compute looks like it.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure(width=6.4, height=3.8)
    least, most = min(p.x for p in points), max(p.x for p in points)
    spread = max(most - least, LEAST_SPREAD * max(abs(least), abs(most)))
    for position, point in enumerate(points):
        neighbours = [
            at for at, other in enumerate(points) if abs(other.x - point.x) <= 0.02 * spread
        ]
        # Aside by whole marks, in points of the paper, so that the axis stays true.
        aside = 11 * (neighbours.index(position) - (len(neighbours) - 1) / 2)
        axes.errorbar(
            point.x,
            point.y,
            yerr=None if point.y_error is None else [[point.y_error[0]], [point.y_error[1]]],
            fmt="o",
            markersize=7,
            color=run_color(position),
            elinewidth=1.2,
            capsize=3,
            label=point.label,
            transform=axes.transData + _shift(figure, aside),
        )
        # The shifted marks do not count for the axis limits, so the points themselves must.
        low, high = point.y_error or (0.0, 0.0)
        axes.update_datalim([(point.x, point.y - low), (point.x, point.y + high)])
    middle = (least + most) / 2
    for x in (middle - spread / 2, middle + spread / 2):
        axes.update_datalim([(x, points[0].y)])
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.margins(x=0.2, y=0.12)
    axes.autoscale_view()
    axes.set_xlabel(points[0].x_label)
    axes.set_ylabel(points[0].y_label)
    _legend(axes, always=True)
    return _png(figure)


def _shift(figure: Figure, points: float) -> Transform:
    from matplotlib.transforms import ScaledTranslation

    return ScaledTranslation(points / 72, 0, figure.dpi_scale_trans)


def _figure(*, width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#b8bec7")
    axes.tick_params(colors=INK, labelsize=9, length=3)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    return figure, axes


def _legend(axes: Axes, *, always: bool = False) -> None:
    """A legend above the plot, chance last; none for a single entry unless ``always``.

    It has as few rows as the width of the figure allows.
    """
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) < 2 and not always:
        return
    figure = axes.figure
    order = sorted(range(len(labels)), key=lambda at: labels[at] == CHANCE)
    for rows in range(1, len(labels) + 1):
        for earlier in list(figure.legends):
            earlier.remove()
        legend = figure.legend(
            [handles[at] for at in order],
            [labels[at] for at in order],
            frameon=False,
            fontsize=9,
            loc="outside upper left",
            ncols=-(-len(labels) // rows),
        )
        if legend.get_window_extent(figure.canvas.get_renderer()).width <= figure.bbox.width:
            return


def _short(name: str) -> str:
    """A name that leaves room for the plot beside it; the table has it in full."""
    return name if len(name) <= 32 else f"{name[:20]}…{name[-11:]}"


def _png(figure: Figure) -> bytes:
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a "$" in a label is a dollar, not a formula
    buffer = io.BytesIO()
    # Without the Software entry the same input gives the same bytes.
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
