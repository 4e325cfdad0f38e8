"""What a report can show beside evaluation runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve; curves of the same group share a figure.

    Attributes:
        name: Entry in the legend.
        x: Positions, such as training steps.
        y: Values, such as the loss.
        x_label: Name of the x axis.
        y_label: Name of the y axis.
        group: Title of the figure.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    x_label: str = "step"
    y_label: str = "loss"
    group: str = "Training"

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y) or not len(self.x):
            raise ValueError(
                f"series {self.name!r}: {len(self.x)} x and {len(self.y)} y; expected as many of "
                "each, and at least one"
            )


@dataclass(frozen=True, kw_only=True)
class Heatmap:
    """A matrix shown in colour, such as expert load by layer.

    Attributes:
        title: Title of the figure.
        values: Rows of numbers, all of the same length.
        row_labels: One name per row.
        column_labels: One name per column.
        value_label: What the colour means.
        row_name: What a row is.
        column_name: What a column is.
    """

    title: str
    values: Sequence[Sequence[float]]
    row_labels: Sequence[str]
    column_labels: Sequence[str]
    value_label: str = "share of tokens"
    row_name: str = "layer"
    column_name: str = "expert"

    def __post_init__(self) -> None:
        if not self.values or not self.column_labels:
            raise ValueError(f"heatmap {self.title!r}: empty; expected at least one value")
        widths = {len(row) for row in self.values}
        if len(self.values) != len(self.row_labels) or widths != {len(self.column_labels)}:
            raise ValueError(
                f"heatmap {self.title!r}: {len(self.values)} rows of {sorted(widths)} values; "
                f"expected {len(self.row_labels)} rows of {len(self.column_labels)}"
            )


@dataclass(frozen=True, kw_only=True)
class Point:
    """One mark in a scatter plot; points of the same group share a figure.

    Attributes:
        label: Name written beside the mark.
        x: Horizontal position, such as GFLOPs per token.
        y: Vertical position, such as a score in percent.
        y_error: Distances from ``y`` down and up to the ends of its interval; None for no bar.
        x_label: Name of the x axis.
        y_label: Name of the y axis.
        group: Title of the figure.
    """

    label: str
    x: float
    y: float
    y_error: tuple[float, float] | None = None
    x_label: str = "GFLOPs per token"
    y_label: str = "score (%)"
    group: str = "Compute against score"

    def __post_init__(self) -> None:
        if self.y_error is not None and (len(self.y_error) != 2 or min(self.y_error) < 0):
            raise ValueError(
                f"point {self.label!r}: y_error {self.y_error}; expected distances (down, up), "
                "zero or more"
            )
