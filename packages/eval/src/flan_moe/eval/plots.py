"""The report's figures, as PNG bytes. Nothing here needs a display or touches pyplot's state."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from flan_moe.eval.report_inputs import Heatmap, Point, Series
from flan_moe.eval.results import TaskScore
from flan_moe.eval.run import CellKey, Run, cell_key
from flan_moe.eval.suite import Mode

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


def run_color(position: int) -> str:
    """The colour of the run at a position; tables and plots share it."""
    return COLORS[position % len(COLORS)]


def plot_group_means(runs: Sequence[Run]) -> bytes:
    """Bars of the group means of every run, with their 95 % intervals over items."""
    settings = list(
        dict.fromkeys((g.group, g.shots, g.mode) for run in runs for g in run.results.groups)
    )
    figure, axes = _figure(
        width=max(5.0, 1.4 + 0.55 * len(settings) * (len(runs) + 0.6)), height=3.6
    )
    bar = 0.8 / len(runs)
    for position, run in enumerate(runs):
        found = {(g.group, g.shots, g.mode): g for g in run.results.groups}
        cells = [(at, found[key]) for at, key in enumerate(settings) if key in found]
        axes.bar(
            [at + (position - (len(runs) - 1) / 2) * bar for at, _ in cells],
            [100 * g.score for _, g in cells],
            width=0.92 * bar,
            yerr=[
                [100 * (g.score - g.over_items.low) for _, g in cells],
                [100 * (g.over_items.high - g.score) for _, g in cells],
            ],
            color=run_color(position),
            label=run.label,
            error_kw={"elinewidth": 1.0, "capsize": 2.5, "ecolor": INK},
        )
    axes.set_xticks(
        range(len(settings)),
        [f"{_group_name(g)}\n{shots}-shot {mode}" for g, shots, mode in settings],
    )
    axes.set_ylabel("mean score (%)")
    axes.set_ylim(0, 100)
    _legend(axes, len(runs))
    return _png(figure)


def plot_tasks(runs: Sequence[Run], *, shots: int, mode: Mode) -> bytes:
    """Horizontal bars of every task at one setting, with 95 % intervals and chance marks."""
    found: dict[int, Mapping[CellKey, TaskScore]] = {
        position: {cell_key(score): score for score in run.results.tasks}
        for position, run in enumerate(runs)
    }
    tasks: dict[str, TaskScore] = {}
    for run in runs:
        for score in run.results.tasks:
            if (score.shots, score.mode) == (shots, mode):
                tasks.setdefault(score.task, score)
    # Held-out tasks on top, because they are what instruction tuning is judged by.
    order = sorted(tasks, key=lambda name: (tasks[name].group == "held_in", name))
    figure, axes = _figure(width=7.6, height=1.0 + len(order) * (0.16 + 0.17 * max(len(runs), 1)))
    bar = 0.8 / len(runs)
    for position, run in enumerate(runs):
        cells = [
            (at, found[position][CellKey(name, shots, mode)])
            for at, name in enumerate(order)
            if CellKey(name, shots, mode) in found[position]
        ]
        axes.barh(
            [at + (position - (len(runs) - 1) / 2) * bar for at, _ in cells],
            [100 * s.score for _, s in cells],
            height=0.92 * bar,
            xerr=[
                [100 * (s.score - s.interval.low) for _, s in cells],
                [100 * (s.interval.high - s.score) for _, s in cells],
            ],
            color=run_color(position),
            label=run.label,
            error_kw={"elinewidth": 0.9, "capsize": 1.8, "ecolor": INK},
        )
    for at, name in enumerate(order):
        chance = 100 * tasks[name].chance
        axes.plot(
            [chance, chance],
            [at - 0.45, at + 0.45],
            color=INK,
            linewidth=1.1,
            linestyle=(0, (2, 1.5)),
            label=CHANCE if at == 0 else None,
        )
    axes.set_yticks(
        range(len(order)), [f"{name} ({_group_name(tasks[name].group)})" for name in order]
    )
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("score (%)")
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    _legend(axes, len(runs) + 1)
    return _png(figure)


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
            marker="o" if len(curve.x) == 1 else None,
        )
    axes.set_xlabel(series[0].x_label)
    axes.set_ylabel(series[0].y_label)
    _legend(axes, len(series))
    return _png(figure)


def plot_heatmap(heatmap: Heatmap) -> bytes:
    """A matrix with its values written in, where there is room for them."""
    rows, columns = len(heatmap.row_labels), len(heatmap.column_labels)
    figure, axes = _figure(
        width=min(13.0, 2.6 + 0.55 * columns), height=min(12.0, 1.2 + 0.42 * rows)
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
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)
    bar.set_label(heatmap.value_label)
    bar.outline.set_visible(False)
    return _png(figure)


def plot_points(points: Sequence[Point]) -> bytes:
    """A scatter plot of one group.

    Marks at nearly the same x are drawn side by side: models compared at equal compute would
    otherwise hide each other.
    """
    figure, axes = _figure(width=6.4, height=3.8)
    spread = max(p.x for p in points) - min(p.x for p in points)
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
    axes.margins(x=0.2, y=0.12)
    axes.autoscale_view()
    axes.set_xlabel(points[0].x_label)
    axes.set_ylabel(points[0].y_label)
    _legend(axes, len(points) + 1)
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


def _legend(axes: Axes, entries: int) -> None:
    if entries > 1:
        handles, labels = axes.get_legend_handles_labels()
        order = sorted(range(len(labels)), key=lambda at: labels[at] == CHANCE)
        axes.legend(
            [handles[at] for at in order],
            [labels[at] for at in order],
            frameon=False,
            fontsize=9,
            loc="lower left",
            bbox_to_anchor=(0.0, 1.0),
            ncols=min(entries, 4),
            borderaxespad=0.2,
        )


def _group_name(group: str) -> str:
    return group.replace("_", "-")


def _png(figure: Figure) -> bytes:
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a "$" in a label is a dollar, not a formula
    buffer = io.BytesIO()
    # Without the Software entry the same input gives the same bytes.
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
