"""Plots as SVG text: lines over a logarithmic axis, and stacked bars.

Everything that comes from data passes `html.escape`; coordinates are numbers made here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666", "#000000")
WIDTH, HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 28, 44


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis of a plot.

    Attributes:
        label: What it measures.
        low: Smallest value shown; above 0 where logarithmic.
        high: Largest, above ``low``.
        logarithmic: Whether ratios are distances.
        percent: Whether ticks are shares.
    """

    label: str
    low: float
    high: float
    logarithmic: bool = False
    percent: bool = False

    def place(self, value: float) -> float:
        """0 at ``low``, 1 at ``high``; values beyond are put at the ends."""
        value = min(max(value, self.low), self.high)
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values, some four to eight."""
        if self.logarithmic:
            base = 10 if self.high / self.low > 5000 or self.percent else 2
            first = math.ceil(math.log(self.low, base) - 1e-9)
            last = math.floor(math.log(self.high, base) + 1e-9)
            step = max(1, (last - first + 7) // 8)
            return [float(base) ** power for power in range(first, last + 1, step)]
        raw = (self.high - self.low) / 5
        size = 10 ** math.floor(math.log10(raw))
        step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def text(self, value: float) -> str:
        """A tick's label."""
        return f"{100 * value:.4g}%" if self.percent else f"{value:,.4g}"


def line_plot(
    title: str, series: Mapping[str, Sequence[tuple[float, float]]], x: Axis, y: Axis
) -> str:
    """Lines through points, one per name, with axes and a legend."""
    parts = [*_axes(x, y)]
    for number, (name, points) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{_x(x, a):.1f},{_y(y, b):.1f}" for a, b in points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8">'
            f"<title>{escape(name)}</title></polyline>"
        )
    return _svg(title, HEIGHT, [*parts, *_legend(list(series))])


def stacked_bars(title: str, bars: Mapping[str, Mapping[str, float]]) -> str:
    """A horizontal bar of full width per name, divided by the shares of its parts."""
    names = list(dict.fromkeys(part for parts in bars.values() for part in parts))
    height = _TOP + 30 * len(bars) + _BOTTOM
    span = WIDTH - _LEFT - _RIGHT
    parts = []
    for row, (name, shares) in enumerate(bars.items()):
        top, left, total = _TOP + 14 + 30 * row, float(_LEFT), sum(shares.values()) or 1.0
        parts.append(
            f'<text x="{_LEFT - 6}" y="{top + 14}" text-anchor="end">{escape(name)}</text>'
        )
        for part, share in shares.items():
            width = span * share / total
            colour = COLOURS[names.index(part) % len(COLOURS)]
            parts.append(
                f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="20" fill="{colour}">'
                f"<title>{escape(name)}, {escape(part)}: {share / total:.1%}</title></rect>"
            )
            left += width
    return _svg(title, height, [*parts, *_legend(names, top=height - 16)])


def _svg(title: str, height: int, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img" font-family="sans-serif" font-size="11">'
    )
    label = f'<text x="{_LEFT}" y="16" font-size="13" font-weight="bold">{escape(title)}</text>'
    return "\n".join([head, f"<title>{escape(title)}</title>", label, *parts, "</svg>"])


def _axes(x: Axis, y: Axis) -> list[str]:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = []
    for value in y.ticks():
        place = _y(y, value)
        parts.append(
            f'<line x1="{_LEFT}" y1="{place:.1f}" x2="{right}" y2="{place:.1f}" stroke="#ddd"/>'
            f'<text x="{_LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{y.text(value)}</text>'
        )
    for value in x.ticks():
        place = _x(x, value)
        parts.append(
            f'<line x1="{place:.1f}" y1="{bottom}" x2="{place:.1f}" y2="{bottom + 4}" '
            f'stroke="#888"/>'
            f'<text x="{place:.1f}" y="{bottom + 16}" text-anchor="middle">{x.text(value)}</text>'
        )
    parts.append(
        f'<line x1="{_LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}" stroke="#888"/>'
        f'<text x="{right}" y="{bottom + 32}" text-anchor="end">{escape(x.label)}</text>'
        f'<text x="{right}" y="16" text-anchor="end">{escape(y.label)}</text>'
    )
    return parts


def _legend(names: Sequence[str], *, top: int = HEIGHT - 14) -> list[str]:
    parts, left = [], float(_LEFT)
    for number, name in enumerate(names):
        colour = COLOURS[number % len(COLOURS)]
        parts.append(
            f'<rect x="{left:.1f}" y="{top}" width="10" height="10" fill="{colour}"/>'
            f'<text x="{left + 14:.1f}" y="{top + 9}">{escape(name)}</text>'
        )
        left += 26 + 6.5 * len(name)
    return parts


def _x(axis: Axis, value: float) -> float:
    return _LEFT + axis.place(value) * (WIDTH - _LEFT - _RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - _BOTTOM - axis.place(value) * (HEIGHT - _TOP - _BOTTOM)
