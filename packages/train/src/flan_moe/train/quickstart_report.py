"""What a quickstart found, as a report: every number in it is read from the quickstart's files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from flan_moe.train.callbacks.metrics_log import read_metrics
from flan_moe.train.quickstart import MODELS, Quickstart
from flan_moe.train.run_folder import RunFolder

if TYPE_CHECKING:
    from flan_moe.eval import GroupScore, Heatmap, Point, Run, Series
    from flan_moe.eval.compare import GroupComparison

STATES = ("untrained", "tuned")
GROUPS = {
    "held_in": "held-in",
    "held_out_sibling": "held-out sibling",
    "held_out": "held-out",
}
SMOOTHED = 10
"""Batches that a point of a training curve averages over."""


def write_quickstart_report(quickstart: Quickstart) -> Path:
    """Write ``index.html`` and its figures into the quickstart's folder; returns the page."""
    from flan_moe.eval import load_run, write_report
    from flan_moe.train.quickstart_notes import notes

    runs = {
        (label, state): load_run(quickstart.results_folder(label, state), label=f"{label}, {state}")
        for label in MODELS
        for state in STATES
    }
    metrics = {
        label: list(read_metrics(quickstart.run_folder(label) / "metrics.jsonl"))
        for label in MODELS
    }
    return write_report(
        quickstart.out,
        runs=list(runs.values()),
        title="Flan-MoE quickstart: a sparse model and its dense twin",
        subtitle="Instruction tuning at equal compute per token, before and after",
        series=_curves(metrics),
        heatmaps=_expert_load(metrics),
        points=_compute_against_score(quickstart, runs),
        notes=notes(quickstart, runs, metrics),
    )


def configuration(quickstart: Quickstart, label: str) -> Any:
    """The model configuration that a run was trained with."""
    from flan_moe.model import FlanMoEConfig

    return FlanMoEConfig.from_pretrained(RunFolder(quickstart.run_folder(label)).model_folder)


def mflops_per_token(quickstart: Quickstart, label: str) -> float:
    """Forward MFLOPs per token at the run's row lengths, mean of the two stacks."""
    from flan_moe.data import read_manifest
    from flan_moe.train.row_lengths import RowLengths

    rows = RowLengths.of(quickstart.recipe(label).recipe.data, read_manifest(quickstart.data))
    return rows.flops_per_token(configuration(quickstart, label)).mean / 1e6


def group_score(run: Run, setting: GroupScore | GroupComparison) -> GroupScore:
    """A run's mean over the tasks of a group at the same group, shots and mode as ``setting``."""
    key = (setting.group, setting.shots, setting.mode)
    return next(s for s in run.results.groups if (s.group, s.shots, s.mode) == key)


def _curves(metrics: dict[str, list[dict[str, Any]]]) -> list[Series]:
    from flan_moe.eval import Series

    curves = []

    def add(name: str, group: str, y_label: str, points: Sequence[tuple[int, float]]) -> None:
        if points:
            x, y = zip(*points, strict=True)
            curves.append(
                Series(name=name, x=x, y=y, x_label="batch", y_label=y_label, group=group)
            )

    for label, lines in metrics.items():
        add(
            label,
            "Training loss",
            f"cross-entropy, mean of {SMOOTHED} batches",
            _smooth(_points(lines, "loss/train/cross_entropy")),
        )
    for label, lines in metrics.items():
        for key in _keys(lines, "metrics/", "/cross_entropy"):
            mixture = key.split("/")[1]
            name = f"{label}, {mixture}"
            add(name, "Validation loss", "cross-entropy", _points(lines, key))
    for label, lines in metrics.items():
        for measure, group, y_label in (
            ("entropy", "Router entropy", "share of the maximum"),
            ("dropped", "Tokens without an expert", "fraction of tokens"),
        ):
            for key in _keys(lines, "router/", f"/{measure}"):
                layer = key.split("/")[1]
                name = layer if len(metrics) == 1 else f"{label}, {layer}"
                add(name, group, y_label, _points(lines, key))
    return curves


def _expert_load(metrics: dict[str, list[dict[str, Any]]]) -> list[Heatmap]:
    """Each expert's share of a layer's rows, over the last quarter of training."""
    from flan_moe.eval import Heatmap

    maps = []
    for label, lines in metrics.items():
        measured = [line for line in lines if _keys([line], "router/", "/dropped")]
        late = measured[-max(1, len(measured) // 4) :]
        layers = dict.fromkeys(key.split("/")[1] for key in _keys(late, "router/", "/dropped"))
        rows = [
            [fmean(line[key] for line in late) for key in _keys(late, f"router/{layer}/load/")]
            for layer in layers
        ]
        if rows:
            maps.append(
                Heatmap(
                    title=f"Expert load of the {label} model, last quarter of training",
                    values=rows,
                    row_labels=list(layers),
                    column_labels=[str(e) for e in range(max(map(len, rows)))],
                    value_label="share of the layer's work",
                )
            )
    return maps


def _compute_against_score(quickstart: Quickstart, runs: dict[tuple[str, str], Run]) -> list[Point]:
    from flan_moe.eval import Point

    points = []
    for (label, state), run in runs.items():
        for score in run.results.groups:
            if (score.shots, score.mode) != (0, "direct"):
                continue
            interval = score.over_items
            points.append(
                Point(
                    label=f"{label}, {state}",
                    x=mflops_per_token(quickstart, label),
                    x_label="forward MFLOPs per token",
                    y=100 * score.score,
                    y_error=(
                        100 * max(0.0, score.score - interval.low),
                        100 * max(0.0, interval.high - score.score),
                    ),
                    y_label="zero-shot score (%)",
                    group=f"Compute against score, {GROUPS[score.group]} tasks",
                )
            )
    return points


def _keys(lines: Sequence[dict[str, Any]], prefix: str, suffix: str = "") -> list[str]:
    found = dict.fromkeys(
        key for line in lines for key in line if key.startswith(prefix) and key.endswith(suffix)
    )
    return list(found)


def _points(lines: Sequence[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    return [(line["batch"], line[key]) for line in lines if key in line]


def _smooth(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    chunks = [points[i : i + SMOOTHED] for i in range(0, len(points), SMOOTHED)]
    return [(chunk[-1][0], fmean(y for _, y in chunk)) for chunk in chunks if chunk]
