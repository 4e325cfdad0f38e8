"""Outputs appear when complete, or not at all: errors, interrupts, kills, replacements."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest

from flan_moe.data.storage.staging import staged_directory

SCRIPT = """
    import sys, time
    from flan_moe.data.storage.staging import staged_directory
    with staged_directory(sys.argv[1]) as staging:
        (staging / "half").write_text("half")
        print("writing", flush=True)
        time.sleep(60)
"""


def start(path):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "writing\n"
    return process


def leftovers(path):
    return sorted(entry.name for entry in path.iterdir())


def test_the_directory_appears_whole(tmp_path):
    with staged_directory(tmp_path / "a" / "out") as staging:
        (staging / "file").write_text("x")
        assert not (tmp_path / "a" / "out").exists()
    assert leftovers(tmp_path / "a") == ["out"]
    assert leftovers(tmp_path / "a" / "out") == ["file"]


def test_an_error_leaves_nothing(tmp_path):
    def fail():
        with staged_directory(tmp_path / "out") as staging:
            (staging / "file").write_text("x")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert leftovers(tmp_path) == []


def test_an_interrupt_leaves_nothing(tmp_path):
    process = start(tmp_path / "out")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) != 0
    assert leftovers(tmp_path) == []


def test_a_kill_leaves_nothing_under_the_name_and_the_next_build_cleans_up(tmp_path):
    process = start(tmp_path / "out")
    process.kill()
    process.wait(30)
    (abandoned,) = leftovers(tmp_path)
    assert abandoned.startswith(".out.building-")
    with staged_directory(tmp_path / "out") as staging:
        (staging / "file").write_text("x")
    assert leftovers(tmp_path) == ["out"]


def test_an_interrupt_while_cleaning_up_is_made_good_by_the_next_build(tmp_path, monkeypatch):
    remove = shutil.rmtree

    def interrupted(path, **kwargs):
        remove(path, **kwargs)
        raise KeyboardInterrupt

    def fail():
        with staged_directory(tmp_path / "out") as staging:
            (staging / "shards").mkdir()
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fail()
    monkeypatch.undo()
    assert leftovers(tmp_path) != []
    with staged_directory(tmp_path / "out"):
        pass
    assert leftovers(tmp_path) == ["out"]


def test_a_build_that_still_runs_is_left_alone(tmp_path):
    process = start(tmp_path / "out")
    try:
        (theirs,) = leftovers(tmp_path)
        with staged_directory(tmp_path / "out"):
            pass
        shutil.rmtree(tmp_path / "out")
        assert leftovers(tmp_path) == [theirs]
        assert (tmp_path / theirs / "half").exists()
    finally:
        process.kill()
        process.wait(30)


def test_nothing_is_replaced_unless_asked(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("x")
    for options, message in (
        ({}, "exists already"),
        ({"overwrite": True, "marker": "manifest.json"}, "holds no manifest.json"),
    ):
        with pytest.raises(FileExistsError, match=message), staged_directory(out, **options):
            pytest.fail("the block must not run")
    assert (out / "precious").read_text() == "x"


def test_the_old_directory_stays_until_the_new_one_is_complete(tmp_path):
    out = tmp_path / "out"
    for content in ("old", "new"):
        with staged_directory(out, overwrite=True, marker="manifest.json") as staging:
            (staging / "manifest.json").write_text(content)
            if content == "new":
                assert (out / "manifest.json").read_text() == "old"
    assert (out / "manifest.json").read_text() == "new"
    assert leftovers(tmp_path) == ["out"]


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with staged_directory(tmp_path / "out"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
