"""Looking into data: settings, packed rows, statistics, the page; what is wrong is named."""

import json
import re
import shlex
import shutil
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from flan_moe.data import cli
from flan_moe.data.mixing.load import load_mixture
from flan_moe.data.offline.pack import PackOptions, pack_directory
from flan_moe.data.offline.rows import read_rows, row_writer
from flan_moe.data.segment_print import ShownSegment, row_lines
from flan_moe.data.statistics.gather import bucket_ends, gather_statistics
from flan_moe.data.statistics.page import statistics_page
from flan_moe.data.statistics.svg import Axis, line_plot, stacked_bars
from flan_moe.data.statistics.text import statistics_lines
from flan_moe.data.storage.shards import read_mds
from flan_moe.data.storage.task_table import read_task_table
from flan_moe.data.storage.verify import verify_data_directory


@pytest.fixture(scope="module")
def packed(mini, tmp_path_factory):
    out = tmp_path_factory.mktemp("inspect") / "packed"
    pack_directory(mini, out, PackOptions(max_input_tokens=300), report=lambda line: None)
    return out


@pytest.fixture(scope="module")
def statistics(mini):
    return gather_statistics(mini, spec=load_mixture("flan_palm_a"), max_input_tokens=512)


def test_show_prints_a_setting(mini, capsys):
    assert cli.main(["show", str(mini), "--type", "fs_opt", "--limit", "2"]) == 0
    first = capsys.readouterr().out
    assert re.findall(r"^\S+/\S+ (\w+)/", first, re.M) == ["fs_opt", "fs_opt"]
    for kind in ("zs_opt", "fs_opt"):
        assert (
            cli.main(["show", str(mini), "--task", "weekday", "--type", kind, "--limit", "99"]) == 0
        )
        shown = re.findall(r"^cot/weekday (\w+)/", capsys.readouterr().out, re.M)
        (task,) = (t for t in read_task_table(mini / "train/cot").tasks if t.name == "weekday")
        assert shown == [kind] * task.types[kind]
    assert cli.main(["show", str(mini), "--task", "weekday", "--type", "fs_noopt"]) == 1
    assert "task 'weekday' has no 'fs_noopt' samples in train; it has zs_opt, fs_opt" in (
        capsys.readouterr().err
    )
    assert cli.main(["show", str(mini), "--type", "zs_noopt"]) == 1
    assert "no task has 'zs_noopt' samples in train" in capsys.readouterr().err


def test_show_prints_packed_rows(packed, capsys):
    row = next(read_rows(packed / "rows"))
    assert cli.main(["show", str(packed), "--limit", "1"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n[") == len(row["tasks"])
    inside = len(row["input_ids"])
    assert f"{inside} of 300 tokens, {300 - inside} padding ({inside / 300:.1%})" in out
    assert "\x1b" not in out
    assert cli.main(["show", str(packed), "--limit", "1", "--color", "always"]) == 0
    assert "\x1b[36m[1] " in capsys.readouterr().out
    assert cli.main(["show", str(packed), "--task", "weekday", "--limit", "2"]) == 0
    for part in capsys.readouterr().out.split("\nrow ")[1:]:
        assert "cot/weekday" in part
    assert cli.main(["show", str(packed), "--task", "sudoku"]) == 1
    assert "no task 'sudoku'" in capsys.readouterr().err
    assert cli.main(["show", str(packed), "--type", "zs_opt"]) == 1
    assert "--type and --split are for data directories" in capsys.readouterr().err


def test_a_row_is_drawn_to_scale_and_cannot_speak_to_the_terminal():
    segments = [
        ShownSegment(title="a/b", source="x\x1b[2J", target="y", tokens=(32, 1)),
        ShownSegment(title="", source="z", target="w", tokens=(16, 1)),
    ]
    lines = row_lines(7, segments, (64, 4), colour=False)
    assert lines[1] == "row 7"
    assert f"|{'1' * 32}{'2' * 16}{'.' * 16}| 48 of 64 tokens, 16 padding (75.0%)" in lines[3]
    assert f"|{'1' * 16}{'2' * 16}{'.' * 32}| 2 of 4 tokens, 2 padding (50.0%)" in lines[4]
    assert "\x1b" not in "".join(lines)


def test_verify_reads_packed_rows(packed):
    lines = list(verify_data_directory(packed))
    assert len(lines) == 2
    assert all("match" in line for line in lines)


def rewritten(packed, path, change):
    """A copy whose rows were changed and whose hashes were made to fit."""
    from flan_moe.data.storage.manifest import file_sha256

    copy = shutil.copytree(packed, path)
    rows = [dict(row) for row in read_rows(copy / "rows")]
    change(rows)
    segments = (copy / "rows/segments.npy").read_bytes()
    shutil.rmtree(copy / "rows")
    with row_writer(copy / "rows", dtype=np.dtype(np.uint16)) as writer:
        for row in rows:
            writer.write(row)
    (copy / "rows/segments.npy").write_bytes(segments)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["rows/index.json"] = file_sha256(copy / "rows/index.json")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def _other_task(rows):
    rows[0]["tasks"] = np.roll(rows[0]["tasks"], 1)


def _too_large(rows):
    rows[1]["input_ids"] = rows[1]["input_ids"].copy()
    rows[1]["input_ids"][0] = 60_000


def _moved_boundary(rows):
    rows[0]["input_lengths"] = rows[0]["input_lengths"] + np.array(
        [1, -1, *[0] * (len(rows[0]["tasks"]) - 2)], np.int64
    ).astype(np.uint32)


def _lost_example(rows):
    rows[2]["tasks"] = rows[2]["tasks"][:-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_other_task, "but the rows have"),
        (_too_large, r"row 1: input_ids exceed vocab_size 1200"),
        (_moved_boundary, r"row 0: has an input that does not end in eos"),
        (_lost_example, r"row 2: has \d+ examples; the table of rows says"),
    ],
)
def test_verify_finds_rows_that_contradict_the_tables(packed, tmp_path, change, message):
    copy = rewritten(packed, tmp_path / "copy", change)
    with pytest.raises(ValueError, match=message):
        list(verify_data_directory(copy))


def test_statistics_count_what_is_stored(mini, statistics):
    for mixture in statistics.mixtures:
        samples = list(read_mds(mini / "train" / mixture.name))
        lengths = np.array([(len(s["input_ids"]), len(s["labels"])) for s in samples])
        assert mixture.total.count == len(samples)
        assert mixture.total.inputs[-1] == lengths[:, 0].max()
        assert mixture.total.targets[1] == np.quantile(lengths[:, 1], 0.5, method="higher")
        kinds = {s["template"].split("/")[0] for s in samples}
        assert set(mixture.by_type) == kinds
        for kind, each in mixture.by_type.items():
            mine = lengths[[s["template"].startswith(kind) for s in samples]]
            assert each.count == len(mine)
            assert each.inputs[-1] == mine[:, 0].max()
        assert sum(mixture.input_histogram.values()) == len(samples)
        below = 0
        for end, count in mixture.target_histogram.items():
            assert count == ((lengths[:, 1] > below) & (lengths[:, 1] <= end)).sum()
            below = end
    assert sum(task.share for task in statistics.tasks) == pytest.approx(1)
    assert sum(task.explained for task in statistics.tasks) == pytest.approx(1)
    shares = [task.explained for task in statistics.tasks]
    assert shares == sorted(shares, reverse=True)


def test_the_forecast_of_packing_is_what_packing_does(mini, statistics, tmp_path):
    packing = statistics.packing
    options = PackOptions(
        mixture=load_mixture("flan_palm_a"),
        max_input_tokens=512,
        max_target_tokens="auto",
        overlong="drop",
    )
    manifest = pack_directory(mini, tmp_path / "packed", options, report=lambda line: None)
    assert manifest.max_target_tokens == packing.budget.max_target_tokens
    assert manifest.fill == pytest.approx(packing.windows)
    assert packing.windows[0] > packing.batches[0]


def test_statistics_are_printed(statistics):
    lines = list(statistics_lines(statistics, limit=2))
    assert lines[0] == "mini-flan, train: 720 samples of 18 tasks in 4 mixtures"
    assert sum("..." in line for line in lines) == 1
    tasks = [line for line in lines if re.match(r"\w+/\w+ ", line)]
    assert len(tasks) == 4
    assert all(line.count("%") == 2 for line in tasks)
    assert any("recommended max_target_tokens: " in line for line in lines)


def test_the_page_is_well_formed_complete_and_asks_for_nothing(statistics):
    page = statistics_page(statistics)
    root = ET.fromstring(page)
    xhtml, svg = "{http://www.w3.org/1999/xhtml}", "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f".//{svg}svg")) == 4
    cells = [cell.text for cell in root.iter(f"{xhtml}td")]
    assert all(task.name in cells for task in statistics.tasks)
    assert not root.findall(f".//{xhtml}script")
    links = re.findall(r'(?:src|href)="|url\(|@import', page)
    assert links == []
    for name in ("nan", "inf"):
        assert name not in re.findall(r'="([^"]*)"', page)


def test_names_are_escaped_wherever_they_come_from(statistics):
    from dataclasses import replace

    evil = '<script>alert("&")</script>'
    changed = replace(
        statistics,
        name=evil,
        spec=evil,
        mixtures=tuple(replace(mixture, name=evil) for mixture in statistics.mixtures),
        tasks=tuple(replace(task, name=evil, mixture=evil) for task in statistics.tasks),
    )
    page = statistics_page(changed)
    ET.fromstring(page)
    assert "<script" not in page
    axis = Axis(label=evil, low=1, high=2)
    for plot in (
        line_plot(evil, {evil: [(1, 1)]}, axis, axis),
        stacked_bars(evil, {evil: {evil: 1}}),
    ):
        assert "<script" not in plot
        ET.fromstring(plot)


def test_axes_put_values_where_they_belong():
    axis = Axis(label="", low=1, high=1024, logarithmic=True)
    assert axis.place(32) == pytest.approx(0.5)
    assert axis.place(0) == 0
    assert axis.ticks()[0] == 1
    assert {axis.place(value) for value in (1, 1024, 5000)} == {0, 1}
    straight = Axis(label="", low=0, high=0.42, percent=True)
    assert [straight.text(value) for value in straight.ticks()] == [
        "0%",
        "10%",
        "20%",
        "30%",
        "40%",
    ]


def test_buckets_double_in_two_steps():
    assert bucket_ends(1) == [1]
    assert bucket_ends(100) == [1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128]


def test_the_printed_examples_work(mini, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini-flan").symlink_to(mini)
    for command in ("pack", "stats"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        text = capsys.readouterr().out
        lines = [x.strip() for x in text.splitlines() if x.startswith("  flan-moe-data ")]
        assert len(lines) >= 2
        for line in lines:
            assert cli.main(shlex.split(line)[1:]) == 0, line
            assert capsys.readouterr().out
    assert cli.main(["stats", "packed", "--limit", "3"]) == 0
    assert "examples a row: min " in capsys.readouterr().out
    ET.parse(tmp_path / "stats.html")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stats", "nowhere"], "nowhere/manifest.json: no such file"),
        (["stats", "DIR", "--limit", "0"], "limit is 0; expected 1 or more"),
        (["stats", "DIR", "--mixture", "flan2023"], "flan2023"),
        (["stats", "DIR", "--max-input-tokens", "3"], "max_input_tokens is 3: 100.00%"),
        (["stats", "PACKED", "--html", "x"], "holds packed rows: --html is not for them"),
        (["stats", "DIR", "--html", "no/x.html"], "no/x.html: its folder does not exist"),
        (["pack", "nowhere", "--out", "x"], "nowhere/manifest.json: no such file"),
        (["pack", "DIR", "--out", "x", "--samples", "0"], "samples is 0; expected a positive"),
        (["pack", "DIR", "--out", "x", "--weights", "cot"], "--weights 'cot'; expected NAME="),
        (["pack", "DIR", "--out", "x", "--weights", "c=1"], "weights.c: no such mixture"),
        (["pack", "DIR", "--out", "DIR"], "exists already"),
        (["pack", "DIR", "--out", "DIR", "--overwrite"], "holds no packed rows, so it is not"),
        (["pack", "PACKED", "--out", "x"], "holds packed rows; packed_dataloader reads them"),
    ],
)
def test_bad_input_ends_in_one_line(
    mini, packed, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    places = {"DIR": str(mini), "PACKED": str(packed)}
    assert cli.main([places.get(word, word) for word in arguments]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("flan-moe-data: error: ")
    assert message in error
    assert list(tmp_path.iterdir()) == []
