"""The report is complete, self-contained and safe to open."""

import dataclasses
import itertools
import json
import math
import re
import struct
import unicodedata
from html.parser import HTMLParser

import pytest

from flan_moe.eval import (
    Heatmap,
    Point,
    Series,
    evaluate,
    load_run,
    load_suite,
    plots,
    write_report,
)
from flan_moe.eval.console import results_text

ATTACK = "<script>alert('x')</script> & $title ${body} \"quoted\" __proto__"


@pytest.fixture
def runs(suite_dir, fake_model, tmp_path):
    lines = (suite_dir / "sums.jsonl").read_text().splitlines()
    lines[0] = json.dumps(json.loads(lines[0]) | {"input": f"asked {ATTACK}", "id": ATTACK})
    (suite_dir / "sums.jsonl").write_text("\n".join(lines) + "\n")
    suite = load_suite(suite_dir)
    for name, answer in (("before", "7"), ("after", ATTACK + "\n3")):
        model = fake_model(
            answer=lambda prompt, answer=answer: answer,
            score=lambda prompt, option: -len(option) - 0.125,
            fingerprint=name,
        )
        evaluate(model, suite, shots=[0, 1], out_dir=tmp_path / name, model_name=ATTACK)
    return [
        load_run(tmp_path / "before"),
        load_run(tmp_path / "after", label=f"after {ATTACK}"),
    ]


def test_chance_stands_beside_every_group_and_task(runs, tmp_path):
    page = write_report(tmp_path / "report", runs=runs).read_text()
    assert '<td class="number">25.0</td>' in page
    assert "chance 25.0" in page
    for table in results_text(runs[0].results).split("\n\n")[1:3]:
        head, _, *rows = table.splitlines()
        assert "chance" in head
        held_in = next(row for row in rows if "held-in" in row)
        assert "25.0" in held_in.split()


EXTRAS = {
    "series": [
        Series(name="sparse", x=[0, 1, 2], y=[3.0, 2.0, 1.5]),
        Series(name=f"dense {ATTACK}", x=[0, 1, 2], y=[3.0, math.nan, 1.75]),
        Series(name="speed", x=[1], y=[5], y_label="tokens/s", group="Speed"),
    ],
    "heatmaps": [
        Heatmap(
            title="Expert load",
            values=[[0.25, 0.75], [0.5, 0.5]],
            row_labels=["layer 1", "layer 3"],
            column_labels=["0", "1"],
        )
    ],
    "points": [
        Point(label="sparse", x=0.01, y=40.0, y_error=(4.0, 5.0)),
        Point(label="dense", x=0.01, y=38.0),
    ],
    "notes": [f"A note. {ATTACK}", "Another."],
}


class Elements(HTMLParser):
    """Tags, attributes and text of a page; complains about tags that are not closed."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img", "br", "link", "hr", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_every_number_is_on_the_page(runs, tmp_path):
    page = write_report(tmp_path / "report", runs=runs, **EXTRAS).read_text("utf-8")
    text = "".join(Elements(page).text)
    for run in runs:
        for score in run.results.tasks:
            assert score.task in text
            low, high = 100 * score.interval.low, 100 * score.interval.high
            assert (
                f"{100 * score.score:.1f}[{low:.1f}, {high:.1f}]norm. {score.normalized:.1f}"
                in text
            )
        for group in run.results.groups:
            assert f"{100 * group.score:.1f}[" in text
            assert f"norm. {group.normalized:.1f}" in text
    assert "held-out" in text
    assert "held-in" in text
    assert "unreadable" in text


def test_what_models_write_is_shown_and_not_executed(runs, tmp_path):
    page = write_report(
        tmp_path / "report", runs=runs, title=ATTACK, subtitle=ATTACK, **EXTRAS
    ).read_text("utf-8")
    found = Elements(page)
    assert "script" not in found.tags
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    # Everything comes out as it went in: title (twice), subtitle, note, label, model name, ids,
    # prompts, outputs.
    text = "".join(found.text)
    assert text.count(ATTACK) >= 12
    assert f"asked {ATTACK}" in text


def test_control_characters_are_shown_and_not_written(suite_dir, fake_model, tmp_path):
    """An untrained model writes them; a page with a NUL or an escape is no longer text."""
    noise = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0)])).replace("\n", "")
    model = fake_model(answer=lambda prompt: f"a{noise}b\nsecond line", fingerprint="noise")
    evaluate(model, load_suite(suite_dir), out_dir=tmp_path / "noise")
    page = write_report(tmp_path / "report", runs=[load_run(tmp_path / "noise")])
    text = page.read_bytes().decode("utf-8")
    assert not {c for c in text if unicodedata.category(c) == "Cc"} - {"\t", "\n"}
    assert "a\u2400\u2401" in text
    assert "second line" in text


def test_the_page_needs_no_other_file(runs, tmp_path):
    index = write_report(tmp_path / "report", runs=runs, **EXTRAS)
    found = Elements(index.read_text("utf-8"))
    sources = [value for name, value in found.attributes if name in ("src", "href")]
    assert sources
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in sources)
    assert "link" not in found.tags
    assert not re.search(r"@import|url\(", index.read_text("utf-8"))
    anchors = {value for name, value in found.attributes if name == "id"}
    assert {value[1:] for value in sources if value.startswith("#")} <= anchors


def test_every_figure_is_also_a_png(runs, tmp_path):
    index = write_report(tmp_path / "report", runs=runs, **EXTRAS)
    figures = sorted((index.parent / "figures").iterdir())
    assert [figure.name for figure in figures] == [
        "group-means.png",
        "heatmap-1.png",
        "points-1.png",
        "series-1.png",
        "series-2.png",
        *(f"tasks-{shots}-shot-{mode}.png" for shots in (0, 1) for mode in ("cot", "direct")),
    ]
    for figure in figures:
        content = figure.read_bytes()
        assert content.startswith(b"\x89PNG\r\n")
        width, height = struct.unpack(">II", content[16:24])
        assert min(width, height) > 200
    assert index.read_text().count("<img") == len(figures)


def is_inside(figure):
    """Whether all that is drawn is within the figure's edges."""
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    return min(box.x0, box.y0) >= 0 and box.x1 <= width and box.y1 <= height


@pytest.fixture
def drawn(monkeypatch):
    """The figures that plots hand over to be written."""
    figures = []
    monkeypatch.setattr(plots, "_png", lambda figure: figures.append(figure) or b"")
    return figures


def test_legends_and_labels_are_inside_their_figures(drawn):
    names = [f"{model}, {mixture}" for model in ("sparse", "dense") for mixture in "abcd"]
    plots.plot_series([Series(name=f"{n} mixture", x=[1, 2], y=[2, 1]) for n in names])
    plots.plot_heatmap(EXTRAS["heatmaps"][0])
    plots.plot_points([Point(label=f"{n} model", x=1.0, y=1.0) for n in names])
    assert all(map(is_inside, drawn))


def test_equal_compute_looks_equal_and_its_ticks_do_not_touch(drawn):
    """Twins differ by a thousandth; an axis that they filled would show a gulf."""
    plots.plot_points([Point(label=str(x), x=x, y=40.0) for x in (0.00090915, 0.00091085)])
    plots.plot_points([Point(label=str(x), x=x, y=40.0) for x in (0.5, 2.0)])
    for figure, least, most in zip(drawn, (0, 0.6), (0.05, 0.8), strict=True):
        figure.draw_without_rendering()
        axes = figure.axes[0]
        low, high = axes.get_xlim()
        marks = [container[0].get_xdata()[0] for container in axes.containers]
        assert least <= (max(marks) - min(marks)) / (high - low) <= most
        ticks = [t.get_window_extent() for t in axes.get_xticklabels()]
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(ticks))


def test_the_same_runs_give_the_same_report(runs, tmp_path):
    first = write_report(tmp_path / "one", runs=runs, **EXTRAS)
    second = write_report(tmp_path / "two", runs=runs, **EXTRAS)
    assert first.read_bytes() == second.read_bytes()


def test_samples_are_the_first_ones_with_their_verdicts(runs, tmp_path):
    page = write_report(tmp_path / "report", runs=runs, samples_per_task=2).read_text("utf-8")
    text = "".join(Elements(page).text)
    assert "sums-1" in text
    assert "sums-2" not in text
    assert "right" in text
    assert "wrong" in text
    assert "-3.125  red" in text  # options with their log-probabilities, best first
    without = write_report(tmp_path / "none", runs=runs, samples_per_task=0).read_text("utf-8")
    assert "sums-1" not in without


def test_a_group_says_how_many_of_its_shots_it_lost(suite_dir, fake_model, tmp_path):
    """Few-shot means are read as such; with prompts too long for exemplars they are zero-shot."""
    model = fake_model(fingerprint="short")
    model.count_tokens = lambda text: len(text.split())
    model.excess_tokens = lambda request: len(request.prompt.split()) - 1
    suite = load_suite(suite_dir).select(("sums",))
    evaluate(model, suite, shots=[0, 2], modes=["direct"], out_dir=tmp_path / "short")
    page = write_report(tmp_path / "report", runs=[load_run(tmp_path / "short")])
    means = "".join(Elements(page.read_text("utf-8")).text).split("Tasks\n", 1)[0]
    questions = len(suite.tasks[0].items)
    assert means.count(f"{questions} of {questions} prompts cut") == 2
    assert means.count(f"{2 * questions} of {2 * questions} exemplars dropped") == 1


def test_long_task_names_leave_room_for_their_bars(drawn, runs):
    before, after = runs
    tasks = [
        dataclasses.replace(score, task=f"task{at}_{'of_many_words_' * 8}")
        for at, score in enumerate(before.results.tasks)
    ]
    long = dataclasses.replace(before, results=dataclasses.replace(before.results, tasks=tasks))
    plots.plot_tasks([long, after], shots=0, mode="direct")
    (figure,) = drawn
    assert is_inside(figure)
    assert figure.axes[0].get_position().width > 0.5


def test_a_report_of_curves_alone(tmp_path):
    page = write_report(tmp_path, series=EXTRAS["series"][:1]).read_text("utf-8")
    assert page.count("<img") == 1
    assert "Group means" not in page


def test_runs_with_different_settings_share_a_table(suite_dir, fake_model, tmp_path, runs):
    suite = load_suite(suite_dir).select(("colours",))
    evaluate(fake_model(fingerprint="c"), suite, out_dir=tmp_path / "c")
    page = write_report(tmp_path / "report", runs=[*runs, load_run(tmp_path / "c")])
    assert "–" in "".join(Elements(page.read_text("utf-8")).text)


def test_what_cannot_be_shown_is_refused(runs, tmp_path):
    with pytest.raises(ValueError, match="nothing to report"):
        write_report(tmp_path / "report")
    with pytest.raises(ValueError, match="expected different ones"):
        write_report(tmp_path / "report", runs=[runs[0], runs[0]])
    assert not (tmp_path / "report").exists()
    with pytest.raises(ValueError, match="2 x and 1 y"):
        Series(name="s", x=[1, 2], y=[1])
    with pytest.raises(ValueError, match="expected 1 rows of 2"):
        Heatmap(title="h", values=[[1.0]], row_labels=["a"], column_labels=["b", "c"])
    with pytest.raises(ValueError, match="empty"):
        Heatmap(title="h", values=[], row_labels=[], column_labels=[])
    with pytest.raises(ValueError, match="y_error"):
        Point(label="p", x=1, y=1, y_error=(-1.0, 1.0))
