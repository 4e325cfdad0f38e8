"""The benchmark of the data pipeline: that it runs, and that its ratios are of its table."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_it_writes_the_ratios_that_are_promised(tmp_path):
    record = tmp_path / "data.json"
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS), "data", "--quick", "--repeats", "1", "--json", record],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    content = json.loads(record.read_text())
    rows = {(row["layout"], row["workers"], row["side"]): row for row in content["rows"]}
    assert len(rows) == 2 * 2 * 3
    assert all(row["tasks_seen"] > 0.8 * row["tasks"] for row in rows.values()), "all of them mix"
    ours, four, many = (rows["mds", 0, side] for side in ("ours", "4 streams", "1836 streams"))
    expected = {
        "startup_over_4_streams": ours["startup_s"] / four["startup_s"],
        "startup_1836_over_ours": many["startup_s"] / ours["startup_s"],
        "throughput_over_4_streams": ours["samples_per_s"] / four["samples_per_s"],
    }
    for name, ratio in expected.items():
        assert content["ratios"][name] == pytest.approx(ratio)
    assert "throughput_over_4_streams_webdataset_workers2" in content["ratios"]
