"""Figures of routing metrics. Each function returns a matplotlib Figure and shows nothing.

Figures are made directly, without pyplot: no display, no global state, nothing to close. Save one
with ``figure.savefig(path)``; a notebook displays the returned value. matplotlib comes with the
extra ``flan-moe-routing[plot]`` and is imported when the first figure is made.

Colours diverge around the even value, in white: blue is less, red is more. The scales are
logarithmic around it, so that half and double are equally far.

Shape suffixes: L layers, E experts, D domains, S steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flan_moe.routing.metrics.load import load_share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK = "#22272e"
_DIVERGING = "RdBu_r"
_SEQUENTIAL = "Blues"
_DPI = 150
_MAX_LABELS = 40  # names along an axis that are still readable
_MAX_NUMBERS = 160  # cells that still have room for a printed number


def plot_load(
    load_LE: Tensor, *, layer_names: Sequence[str] | None = None, title: str | None = None
) -> Figure:
    """Heatmap of the load of every expert of every layer, relative to an even load.

    Args:
        load_LE: (L, E) tokens per expert, or shares; each row is divided by its own sum.
        layer_names: L names; None numbers the layers.
        title: of the figure; None for the default one.

    Returns:
        The figure: layers downwards, experts to the right, colour ``share * E``, 1 being even.
        A white dot marks an expert without any load.

    Raises:
        ValueError: if a shape or the number of names does not fit.
    """
    load_LE = _matrix(load_LE, "load_LE", "layers, experts")
    relative = load_share(load_LE) * load_LE.shape[1]
    names = _names(layer_names, load_LE.shape[0], "layer_names")
    figure, axes = _figure(*relative.shape, title or "Expert load per layer", names=names)
    _heatmap(axes, relative, "load / even load", dead=load_LE == 0)
    _label(axes, columns=("expert", None), rows=("layer", names), shape=relative.shape)
    return figure


def plot_specialisation(
    share_DE: Tensor, *, domain_names: Sequence[str] | None = None, title: str | None = None
) -> Figure:
    """Heatmap of which experts work on which domain.

    Args:
        share_DE: (D, E) from `domain_specialisation`: the share of a domain's tokens that an
            expert works on.
        domain_names: D names; None numbers the domains.
        title: of the figure; None for the default one.

    Returns:
        The figure: domains downwards, experts to the right, colour ``share / (row sum / E)``, 1
        being a domain that uses all experts evenly. Few cells also show the share in percent.

    Raises:
        ValueError: if a shape or the number of names does not fit.
    """
    share_DE = _matrix(share_DE, "share_DE", "domains, experts")
    relative = load_share(share_DE) * share_DE.shape[1]
    names = _names(domain_names, share_DE.shape[0], "domain_names")
    figure, axes = _figure(
        *relative.shape, title or "Which experts work on which domain", names=names
    )
    numbers = [[f"{100 * share:.0f} %" for share in row] for row in share_DE.tolist()]
    _heatmap(axes, relative, "share / even share", numbers=numbers)
    _label(axes, columns=("expert", None), rows=("domain", names), shape=relative.shape)
    return figure


def plot_co_activation(co_activation_EE: Tensor, *, title: str | None = None) -> Figure:
    """Heatmap of which experts work on the same tokens.

    Args:
        co_activation_EE: (E, E) from `co_activation`; the diagonal, 1 by definition, is left
            grey and out of the colour scale.
        title: of the figure; None for the default one.

    Returns:
        The figure: expert i downwards, j to the right, colour the percentage of i's tokens that
        j works on as well, cut off at the 99.5th percentile if
        that is far below the highest. Few cells also show the number.

    Raises:
        ValueError: if the matrix is not square.
    """
    matrix = _matrix(co_activation_EE, "co_activation_EE", "experts, experts")
    size = matrix.shape[0]
    if matrix.shape[1] != size:
        raise ValueError(f"co_activation_EE has shape {tuple(matrix.shape)}; expected a square")
    figure, axes = _figure(size, size, title or "Experts that work on the same tokens", square=True)
    percent = 100 * matrix.masked_fill(torch.eye(size, dtype=torch.bool), torch.nan)
    off_diagonal = percent[~percent.isnan()]
    # One pair that always goes together must not fade all others.
    highest = float(off_diagonal.max()) if size > 1 else 0.0
    common = float(off_diagonal.quantile(0.995)) if size > 1 else 0.0
    if highest > 1.25 * common > 0:
        highest = common
    numbers = [
        [f"{value:.0f}" if value == value else "" for value in row] for row in percent.tolist()
    ]
    _heatmap(
        axes,
        percent,
        "% of the row's tokens",
        scale=(0.0, highest or 1.0),
        numbers=numbers,
    )
    _label(
        axes,
        columns=("also worked on by expert", None),
        rows=("tokens of expert", None),
        shape=(size, size),
    )
    return figure


def plot_load_history(
    load_SE: Tensor,
    *,
    steps: Sequence[float] | None = None,
    layer_name: str | None = None,
    title: str | None = None,
) -> Figure:
    """Heatmap of one layer's load over training.

    Args:
        load_SE: (S, E) tokens per expert at S steps, or shares; each step is divided by its own
            sum. Average over neighbouring steps first if single batches are small.
        steps: S increasing step numbers; None counts from 0.
        layer_name: for the title.
        title: of the figure, in place of the default one.

    Returns:
        The figure: steps to the right, experts upwards, colour ``share * E``, 1 being even.

    Raises:
        ValueError: if a shape or the steps do not fit.
    """
    load_SE = _matrix(load_SE, "load_SE", "steps, experts")
    num_steps, num_experts = load_SE.shape
    at = list(range(num_steps)) if steps is None else [float(step) for step in steps]
    if len(at) != num_steps:
        raise ValueError(f"steps has {len(at)} entries; load_SE has {num_steps} steps")
    if not all(later > earlier for earlier, later in pairwise(at)):  # NaN is not greater either
        raise ValueError("steps must increase")
    relative = (load_share(load_SE) * num_experts).T
    layer = f", {layer_name}" if layer_name else ""
    figure, axes = _figure(
        num_experts, max(num_steps, 60), title or f"Expert load over training{layer}"
    )
    # A column reaches halfway to its neighbours, so that uneven steps are drawn as uneven.
    half = [(a + b) / 2 for a, b in pairwise(at)]
    first = at[0] - (half[0] - at[0] if half else 0.5)
    last = at[-1] + (at[-1] - half[-1] if half else 0.5)
    _heatmap(axes, relative, "load / even load", column_edges=[first, *half, last])
    _label(axes, columns=("step", None), rows=("expert", None), shape=relative.shape)
    axes.invert_yaxis()
    return figure


def _matrix(values: Tensor, name: str, axes: str) -> Tensor:
    values = torch.as_tensor(values).detach().to("cpu", torch.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"{name} has shape {tuple(values.shape)}; expected ({axes}), not empty")
    return values


def _names(names: Sequence[str] | None, count: int, argument: str) -> list[str] | None:
    if names is not None and len(names) != count:
        raise ValueError(f"{argument} has {len(names)} names; expected {count}")
    return None if names is None else [str(name) for name in names]


def _figure(
    rows: int,
    columns: int,
    title: str,
    *,
    names: Sequence[str] | None = None,
    square: bool = False,
) -> tuple[Figure, Axes]:
    """A figure whose axes have room for the cells, within what fits a page."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    margin = 1.6 + 0.075 * max(map(len, names or [""]))
    width = min(max(0.42 * columns, 4.5), 10.0) + margin
    height = min(max(0.32 * rows, 1.2), 8.5) + 1.2
    if square:
        height = width - margin + 1.2
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title(title, color=_INK, fontsize=11, loc="left")
    return figure, axes


def _heatmap(
    axes: Axes,
    values: Tensor,
    legend: str,
    *,
    scale: tuple[float, float] | None = None,
    numbers: Sequence[Sequence[str]] | None = None,
    dead: Tensor | None = None,
    column_edges: Sequence[float] | None = None,
) -> None:
    """Draw cells and their colour bar; without a scale, diverging around 1."""
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm, Normalize

    rows, columns = values.shape
    norm: Any
    if scale is None:
        spread = _spread(values)
        norm, cmap = LogNorm(1 / spread, spread, clip=True), colormaps[_DIVERGING]
        values = values.clamp(min=1 / spread)  # an idle expert has no logarithm
    else:
        norm, cmap = Normalize(*scale), colormaps[_SEQUENTIAL]
    cmap = cmap.with_extremes(bad="#d0d4d9")
    edges = list(range(columns + 1)) if column_edges is None else column_edges
    if column_edges is None:
        edges = [edge - 0.5 for edge in edges]
    row_edges = [edge - 0.5 for edge in range(rows + 1)]
    mesh = axes.pcolormesh(edges, row_edges, values.numpy(), norm=norm, cmap=cmap, rasterized=True)
    axes.invert_yaxis()
    cut = scale is not None and float(values.nan_to_num(0.0).max()) > scale[1]
    bar = axes.figure.colorbar(
        mesh, ax=axes, pad=0.02, aspect=25, extend="max" if cut else "neither"
    )
    bar.set_label(legend, color=_INK, fontsize=9)
    bar.ax.tick_params(labelsize=8, colors=_INK)
    bar.outline.set_visible(False)
    if scale is None:
        ticks = [tick for tick in (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8) if 1 / spread <= tick <= spread]
        bar.ax.minorticks_off()
        bar.set_ticks(ticks, labels=[_multiple(tick, spread) for tick in ticks])
    if dead is not None and values.numel() <= 64 * _MAX_NUMBERS:
        row, column = dead.nonzero(as_tuple=True)
        axes.scatter(column, row, s=5, color="white", linewidths=0)
    if numbers is not None and values.numel() <= _MAX_NUMBERS:
        _write(axes, values, numbers, cmap, norm)


def _spread(values: Tensor) -> float:
    """How many times more or less than even the colours tell apart: a power of 2 from 2 to 8."""
    used = values[values > 0]
    farthest = float(torch.maximum(used, 1 / used).max()) if used.numel() else 1.0
    return next((spread for spread in (2.0, 4.0) if farthest <= spread), 8.0)


def _multiple(tick: float, spread: float) -> str:
    text = f"1/{1 / tick:.0f}" if tick < 1 else f"{tick:.0f}"
    if tick == 1:
        return "1 (even)"
    if tick == spread == 8:
        return f"{text} or more"
    return f"{text} or less" if tick == 1 / spread else text


def _write(
    axes: Axes, values: Tensor, numbers: Sequence[Sequence[str]], cmap: Any, norm: Any
) -> None:
    for row, texts in enumerate(numbers):
        for column, text in enumerate(texts):
            red, green, blue, _ = cmap(norm(float(values[row, column])))
            light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
            color = _INK if light else "white"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=color)


def _label(
    axes: Axes,
    *,
    columns: tuple[str, Sequence[str] | None],
    rows: tuple[str, Sequence[str] | None],
    shape: tuple[int, int],
) -> None:
    """Axis titles; names where they are given, whole numbers at a readable distance elsewhere."""
    from matplotlib.ticker import MaxNLocator

    for axis, (label, names), count in (
        (axes.xaxis, columns, shape[1]),
        (axes.yaxis, rows, shape[0]),
    ):
        axis.set_label_text(label, color=_INK, fontsize=9)
        if names is None:
            axis.set_major_locator(
                MaxNLocator(nbins=16, integer=True, min_n_ticks=1, steps=[1, 2, 4, 8, 10])
            )
        else:
            shown = list(range(0, count, -(-count // _MAX_LABELS)))
            axis.set_ticks(shown, labels=[names[index] for index in shown])
    axes.tick_params(labelsize=8, colors=_INK, length=2)
    for spine in axes.spines.values():
        spine.set_visible(False)
