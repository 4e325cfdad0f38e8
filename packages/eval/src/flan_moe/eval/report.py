"""One page that shows what was measured: ``index.html``, complete in itself, and its PNGs."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from flan_moe.eval import plots
from flan_moe.eval.files import write_bytes, write_text
from flan_moe.eval.html_tables import environment_table, group_table, sample_browser, task_table
from flan_moe.eval.report_inputs import Heatmap, Point, Series
from flan_moe.eval.run import Run


class _Page:
    """Sections in order, with their figures."""

    def __init__(self) -> None:
        self.sections: list[tuple[str, str, str]] = []
        self.figures: dict[str, bytes] = {}

    def section(self, anchor: str, title: str, content: str) -> None:
        if content:
            self.sections.append((anchor, title, content))

    def figure(self, name: str, png: bytes, caption: str) -> str:
        self.figures[f"{name}.png"] = png
        data = base64.b64encode(png).decode("ascii")
        text = escape(caption)
        return (
            f'<figure><img src="data:image/png;base64,{data}" alt="{text}">'
            f"<figcaption>{text}</figcaption></figure>\n"
        )


def write_report(
    out_dir: str | Path,
    *,
    runs: Sequence[Run] = (),
    title: str = "Evaluation",
    subtitle: str = "",
    series: Sequence[Series] = (),
    heatmaps: Sequence[Heatmap] = (),
    points: Sequence[Point] = (),
    notes: Sequence[str] = (),
    samples_per_task: int = 5,
) -> Path:
    """Write a report on any number of labelled runs.

    The page needs no network and no other file; each figure is also written beside it as PNG. All
    texts are escaped, so that a model's output is shown and never executed.

    Args:
        out_dir: Folder of the report; made if missing.
        runs: Evaluations, in the order of tables and plots.
        title: Headline.
        subtitle: A line under it.
        series: Curves, one figure per group.
        heatmaps: Matrices, one figure each.
        points: Marks of scatter plots, one figure per group.
        notes: Paragraphs for the reader: what was done, what the numbers do not show.
        samples_per_task: Samples shown per task, shots and mode: the first ones, not chosen ones.

    Returns:
        The path of ``index.html``.

    Raises:
        ValueError: Two runs share a label, or there is nothing to show.
    """
    labels = [run.label for run in runs]
    if len(set(labels)) != len(labels):
        raise ValueError(f"runs: labels {labels}; expected different ones")
    if not (runs or series or heatmaps or points):
        raise ValueError("nothing to report: no runs, series, heatmaps or points")
    page = _Page()
    page.section("notes", "Notes", _notes(notes))
    if runs:
        _add_scores(page, runs)
    _add_figures(page, series, heatmaps, points)
    if runs:
        page.section("samples", "Samples", sample_browser(runs, samples_per_task))
        page.section("settings", "Settings", environment_table(runs))
    folder = Path(out_dir)
    for name, png in page.figures.items():
        write_bytes(folder / "figures" / name, png)
    index = folder / "index.html"
    write_text(index, _render(page, title, subtitle))
    return index


def _add_scores(page: _Page, runs: Sequence[Run]) -> None:
    bars = page.figure(
        "group-means",
        plots.plot_group_means(runs),
        "Mean score of the tasks of each group. Bars: 95 % interval for other questions of the "
        "same tasks.",
    )
    page.section("groups", "Group means", group_table(runs) + bars)
    settings = dict.fromkeys(
        (score.shots, score.mode) for run in runs for score in run.results.tasks
    )
    parts = []
    for number, (shots, mode) in enumerate(settings):
        bars = page.figure(
            f"tasks-{shots}-shot-{mode}",
            plots.plot_tasks(runs, shots=shots, mode=mode),
            f"Score of each task, {shots}-shot {mode}, with 95 % intervals. Dashed: score of "
            "guessing.",
        )
        table = task_table(runs, shots=shots, mode=mode)
        parts.append(
            f"<details{'' if number else ' open'}><summary><strong>{shots}-shot {mode}</strong>"
            f'</summary>\n<div class="inside">{table}{bars}</div></details>\n'
        )
    page.section("tasks", "Tasks", "".join(parts))


def _add_figures(
    page: _Page,
    series: Sequence[Series],
    heatmaps: Sequence[Heatmap],
    points: Sequence[Point],
) -> None:
    scatter = [
        page.figure(f"points-{number}", plots.plot_points(members), group)
        for number, (group, members) in enumerate(_by_group(points).items(), start=1)
    ]
    page.section("compute", "Compute and score", _row(scatter))
    curves = [
        page.figure(f"series-{number}", plots.plot_series(members), group)
        for number, (group, members) in enumerate(_by_group(series).items(), start=1)
    ]
    page.section("training", "Curves", _row(curves))
    maps = [
        page.figure(f"heatmap-{number}", plots.plot_heatmap(heatmap), heatmap.title)
        for number, heatmap in enumerate(heatmaps, start=1)
    ]
    page.section("experts", "Expert load", _row(maps))


def _by_group(members: Sequence[Series] | Sequence[Point]) -> dict[str, list]:
    groups: dict[str, list] = {}
    for member in members:
        groups.setdefault(member.group, []).append(member)
    return groups


def _row(figures: Sequence[str]) -> str:
    return f'<div class="figures">\n{"".join(figures)}</div>\n' if figures else ""


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>\n" for note in notes)
    return f'<ul class="notes">\n{items}</ul>\n' if items else ""


def _render(page: _Page, title: str, subtitle: str) -> str:
    template = files("flan_moe.eval").joinpath("templates/report.html").read_text("utf-8")
    navigation = " ".join(
        f'<a href="#{anchor}">{escape(name)}</a>' for anchor, name, _ in page.sections
    )
    body = "".join(
        f'<section id="{anchor}">\n<h2>{escape(name)}</h2>\n{content}</section>\n'
        for anchor, name, content in page.sections
    )
    # The template is ours; values are only ever inserted into it, never searched for "$".
    return Template(template).substitute(
        title=escape(title), subtitle=escape(subtitle), navigation=navigation, body=body
    )
