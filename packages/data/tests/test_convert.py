"""Shards to tars and back: the same samples, the same bytes, and nothing half-done."""

import shutil
import sys
from contextlib import suppress
from itertools import count
from pathlib import Path
from shutil import rmtree

import pytest

from flan_moe.data.cli import main
from flan_moe.data.storage.convert import convert_data_directory, convert_samples
from flan_moe.data.storage.manifest import open_data_directory
from flan_moe.data.storage.shards import read_mds, read_webdataset


def tree(directory):
    return {
        str(file.relative_to(directory)): file.read_bytes()
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


def test_tars_added_later_are_those_of_a_build_with_tars(mini, rebuild, tmp_path, capsys):
    out = rebuild(tmp_path / "out", webdataset=False)
    assert tree(out) != tree(mini)
    assert main(["convert", str(out), "--to", "webdataset"]) == 0
    assert "webdataset/train/cot: 200 samples\n" in capsys.readouterr().out
    assert tree(out) == tree(mini)
    assert main(["convert", str(out), "--to", "webdataset"]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["convert", str(out), "--to", "webdataset", "--overwrite"]) == 0
    assert tree(out) == tree(mini)


def test_shards_that_are_missing_or_damaged_come_back_from_the_tars(mini, mini_copy):
    for file in (mini_copy / "train" / "cot").glob("*.mds"):
        file.unlink()
    (mini_copy / "train" / "niv2" / "index.json").unlink()
    shard = mini_copy / "validation" / "muffin" / "shard.00000.mds"
    shard.write_bytes(bytes(len(shard.read_bytes())))
    lines = list(convert_data_directory(mini_copy, "mds"))
    assert [line.split(":")[0] for line in lines] == [
        "train/cot",
        "train/niv2",
        "validation/muffin",
    ]
    assert tree(mini_copy) == tree(mini)
    open_data_directory(mini_copy)
    with pytest.raises(FileExistsError, match="there already, and undamaged"):
        list(convert_data_directory(mini_copy, "mds"))


def test_restoring_shards_can_be_killed_whenever_a_file_is_put_in_place(
    mini, mini_copy, monkeypatch
):
    for kill_at in count():
        for file in (mini_copy / "train" / "cot").glob("*.mds"):
            file.unlink()
        calls = count()
        with monkeypatch.context() as patch:
            for name in ("rename", "replace"):
                original = getattr(Path, name)

                def killed(self, target, original=original, calls=calls, kill_at=kill_at):
                    if next(calls) == kill_at:
                        raise KeyboardInterrupt
                    return original(self, target)

                patch.setattr(Path, name, killed)
            patch.setattr("flan_moe.data.storage.convert.shutil.rmtree", kept_by_a_kill)
            try:
                list(convert_data_directory(mini_copy, "mds"))
                break
            except KeyboardInterrupt:
                pass
        with suppress(FileExistsError):  # killed after all was in place
            list(convert_data_directory(mini_copy, "mds"))
        assert tree(mini_copy) == tree(mini)
    assert kill_at > 0


def kept_by_a_kill(path, **options):
    """Removes what a process would before it is killed, not what it would clean up after."""
    if sys.exc_info()[0] is not KeyboardInterrupt:
        rmtree(path, **options)


def test_tars_that_are_damaged_or_of_other_data_change_nothing(mini, rebuild, mini_copy, tmp_path):
    shutil.rmtree(mini_copy / "webdataset" / "train" / "cot")
    other = rebuild(tmp_path / "other", seed=1)
    (mini_copy / "train" / "cot" / "shard.00000.mds").unlink()
    tars = mini_copy / "webdataset" / "train" / "cot"
    for how, message in (
        ("missing", r"cot/index\.json: no such file"),
        ("other", r"cot: its samples are not those of manifest\.json"),
        ("flipped", r"shard-00000\.tar: damaged shard"),
        ("table", r"cot/tasks\.json: missing or damaged; it cannot be made from the tars"),
    ):
        if how == "other":
            shutil.copytree(other / "webdataset" / "train" / "cot", tars)
        elif how == "flipped":
            shutil.rmtree(tars)
            shutil.copytree(mini / "webdataset" / "train" / "cot", tars)
            data = (tars / "shard-00000.tar").read_bytes()
            (tars / "shard-00000.tar").write_bytes(data[:-1] + b"x")
        elif how == "table":
            (tars / "shard-00000.tar").write_bytes(data)
            (mini_copy / "train" / "cot" / "tasks.json").unlink()
        before = tree(mini_copy)
        with pytest.raises(ValueError, match=message):
            list(convert_data_directory(mini_copy, "mds"))
        assert tree(mini_copy) == before


def test_samples_alone_go_both_ways(mini, tmp_path):
    shards = mini / "train" / "t0_sf"
    count = convert_samples(shards, "webdataset", tmp_path / "tars")
    assert convert_samples(tmp_path / "tars", "mds", tmp_path / "mds") == count == 200
    for ours, theirs, back in zip(
        read_mds(shards),
        read_webdataset(tmp_path / "tars"),
        read_mds(tmp_path / "mds"),
        strict=True,
    ):
        for other in (theirs, back):
            assert ours["input_ids"].tolist() == other["input_ids"].tolist()
            assert ours["labels"].tolist() == other["labels"].tolist()
            assert (ours["task"], ours["template"]) == (other["task"], other["template"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--to", "mds"], "nowhere/manifest.json: no such file"),
        (["nowhere", "--to", "mds", "--out", "x"], "nowhere/index.json: no such file"),
        (["MINI", "--to", "mds", "--out", "x"], "is a data directory, which is converted in place"),
        (["MINI/train/cot", "--to", "mds", "--out", "x"], "not an index of flan-moe-webdataset"),
        (["MINI/train/cot", "--to", "webdataset", "--out", "MINI"], "exists already"),
    ],
)
def test_what_cannot_be_converted_is_refused(
    mini, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    arguments = [argument.replace("MINI", str(mini)) for argument in arguments]
    assert main(["convert", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
