"""Shards: both formats hold the same samples, equal bytes, and damage is found by file name."""

import io
import json
import tarfile

import numpy as np
import pytest

from flan_moe.data.storage.shards import (
    ShardError,
    check_mds,
    check_webdataset,
    read_mds,
    read_webdataset,
    write_mds,
    write_webdataset,
)


def samples(count=60):
    rng = np.random.default_rng(0)
    for number in range(count):
        yield {
            "input_ids": rng.integers(3, 60_000, rng.integers(1, 40)).astype(np.uint16),
            "labels": rng.integers(3, 60_000, rng.integers(1, 9)).astype(np.uint16),
            "task": number // 20,
            "template": f"zs_opt/zero_shot/{number % 4} é",
        }


def as_tuples(iterable):
    return [
        (s["input_ids"].tolist(), s["labels"].tolist(), s["task"], s["template"]) for s in iterable
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("shards")
    assert write_mds(path / "mds", samples(), dtype=np.uint16, shard_bytes=2000) == 60
    assert write_webdataset(path / "tar", samples(), samples_per_shard=25) == 60
    return path


@pytest.fixture
def copy(written, tmp_path):
    """A writable copy, to be damaged."""
    for kind in ("mds", "tar"):
        (tmp_path / kind).mkdir()
        for file in (written / kind).iterdir():
            (tmp_path / kind / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_both_formats_hold_the_samples(written):
    expected = as_tuples(samples())
    assert as_tuples(read_mds(written / "mds")) == expected
    assert as_tuples(read_webdataset(written / "tar")) == expected
    assert len(list((written / "mds").glob("*.mds"))) > 2
    assert len(list((written / "tar").glob("*.tar"))) == 3


def test_types_survive(written):
    for read, name in ((read_mds, "mds"), (read_webdataset, "tar")):
        sample = next(iter(read(written / name)))
        assert sample["input_ids"].dtype == sample["labels"].dtype == np.uint16


def test_reading_can_start_anywhere(written):
    expected = as_tuples(samples())
    for start in (0, 1, 17, 43, 59, 60):
        assert as_tuples(read_mds(written / "mds", start=start)) == expected[start:]


def test_formats_convert_into_each_other(written, tmp_path):
    write_webdataset(tmp_path / "tar", read_mds(written / "mds"), samples_per_shard=25)
    write_mds(tmp_path / "mds", read_webdataset(written / "tar"), dtype=np.uint16, shard_bytes=2000)
    for kind in ("mds", "tar"):
        for file in sorted((written / kind).iterdir()):
            assert file.read_bytes() == (tmp_path / kind / file.name).read_bytes(), file


def test_a_webdataset_user_can_read_the_tars(written):
    import webdataset

    urls = [str(file) for file in sorted((written / "tar").glob("*.tar"))]
    pipeline = webdataset.WebDataset(urls, shardshuffle=False).decode()
    assert [s["json"]["input_ids"] for s in pipeline] == [
        s["input_ids"].tolist() for s in samples()
    ]


def test_existing_directories_and_empty_inputs_are_refused(written, tmp_path):
    with pytest.raises(FileExistsError):
        write_mds(written / "mds", samples(), dtype=np.uint16)
    for write in (lambda p: write_mds(p, [], dtype=np.uint16), lambda p: write_webdataset(p, [])):
        with pytest.raises(ValueError, match="no samples to write"):
            write(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_a_failing_source_leaves_nothing(tmp_path):
    def broken():
        yield from samples(3)
        raise OSError("source gone")

    for write in (
        lambda p: write_mds(p, broken(), dtype=np.uint16),
        lambda p: write_webdataset(p, broken()),
    ):
        with pytest.raises(OSError, match="source gone"):
            write(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "read", "name"),
    [("mds", read_mds, "shard.00001.mds"), ("tar", read_webdataset, "shard-00001.tar")],
)
def test_truncated_and_missing_shards_are_named_before_reading(copy, kind, read, name):
    file = copy / kind / name
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(ShardError, match=rf"{name}: \d+ bytes; index.json says \d+"):
        next(iter(read(copy / kind)))
    file.unlink()
    with pytest.raises(ShardError, match=f"{name}: missing shard"):
        next(iter(read(copy / kind)))


@pytest.mark.parametrize(
    ("kind", "check", "name"),
    [("mds", check_mds, "shard.00001.mds"), ("tar", check_webdataset, "shard-00001.tar")],
)
def test_a_flipped_bit_is_found_by_its_hash(copy, kind, check, name):
    check(copy / kind, hashes=True)
    file = copy / kind / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    check(copy / kind)
    with pytest.raises(ShardError, match=f"{name}: damaged shard"):
        check(copy / kind, hashes=True)


@pytest.mark.parametrize(("kind", "check"), [("mds", check_mds), ("tar", check_webdataset)])
def test_a_damaged_or_missing_index_is_named(copy, kind, check):
    index = copy / kind / "index.json"
    index.write_text(index.read_text()[:-20])
    with pytest.raises(ShardError, match=r"index\.json: damaged index"):
        check(copy / kind)
    index.write_text('{"version": 1}')
    with pytest.raises(ShardError, match=r"index\.json: not an"):
        check(copy / kind)
    index.unlink()
    with pytest.raises(ShardError, match=r"index\.json: no such file"):
        check(copy / kind)


@pytest.mark.parametrize(("kind", "check"), [("mds", check_mds), ("tar", check_webdataset)])
def test_an_index_that_points_outside_is_refused(copy, kind, check):
    index = copy / kind / "index.json"
    name = "shard.00000.mds" if kind == "mds" else "shard-00000.tar"
    index.write_text(index.read_text().replace(name, "../secret"))
    with pytest.raises(ShardError, match="leaves the directory"):
        check(copy / kind)


def forge(directory, members):
    """A directory whose index vouches for a tar with these members."""
    directory.mkdir()
    with tarfile.open(directory / "shard-00000.tar", "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    data = (directory / "shard-00000.tar").read_bytes()
    shard = {"name": "shard-00000.tar", "bytes": len(data), "sha256": "", "samples": len(members)}
    index = {"format": "flan-moe-webdataset", "version": 1, "shards": [shard]}
    (directory / "index.json").write_text(json.dumps(index))


def test_a_hostile_tar_is_refused_and_writes_nothing(tmp_path):
    sample = {"input_ids": [3], "labels": [4], "task": 0, "template": "x", "dtype": "uint16"}
    good = json.dumps(sample).encode()
    forge(tmp_path / "traversal", [("../../escaped.json", good)])
    with pytest.raises(ShardError, match=r"member '\.\./\.\./escaped'; expected names like"):
        list(read_webdataset(tmp_path / "traversal"))
    assert not list(tmp_path.parent.glob("escaped*"))
    forge(tmp_path / "pickle", [("0.pyd", b"cos\nsystem\n(S'false'\ntR.")])
    with pytest.raises(ShardError, match=r"shard-00000\.tar: sample 0 cannot be read"):
        list(read_webdataset(tmp_path / "pickle"))
    forge(tmp_path / "type", [("0.json", good.replace(b"uint16", b"object"))])
    with pytest.raises(ShardError, match="dtype is 'object'"):
        list(read_webdataset(tmp_path / "type"))


def test_a_tar_cut_between_members_is_found(copy):
    file = copy / "tar" / "shard-00002.tar"
    index = json.loads((copy / "tar" / "index.json").read_text())
    with tarfile.open(file) as tar:
        end = tar.getmembers()[4].offset
    file.write_bytes(file.read_bytes()[:end])
    index["shards"][2]["bytes"] = end  # as if the index had been made of the cut file
    (copy / "tar" / "index.json").write_text(json.dumps(index))
    with pytest.raises(ShardError, match=r"shard-00002\.tar: holds 4 samples; the index says 10"):
        list(read_webdataset(copy / "tar"))
