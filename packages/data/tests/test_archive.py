"""Archives of others: a member that would be written elsewhere refuses the whole archive."""

import io
import tarfile
import zipfile

import pytest

from flan_moe.data.fetch.archive import ArchiveError, extract_archive


def tar_of(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(data, bytes):
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            else:
                for key, value in data.items():
                    setattr(info, key, value)
                tar.addfile(info)
    return path


def zip_of(path, members):
    with zipfile.ZipFile(path, "w") as packed:
        for name, data in members.items():
            if isinstance(data, bytes):
                packed.writestr(name, data)
            else:
                info = zipfile.ZipInfo(name)
                info.external_attr = data["mode"] << 16
                packed.writestr(info, data["linkname"])
    return path


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz", "zip"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/etc/passwd", "has an absolute path"),
        ("C:\\windows\\x", "has an absolute path"),
        ("../x", "leaves its directory"),
        ("a/../../x", "leaves its directory"),
        ("a\\..\\..\\x", "leaves its directory"),
    ],
)
def test_members_that_leave_the_directory_are_refused(tmp_path, suffix, name, message):
    members = {"good.txt": b"good", name: b"bad"}
    archive = tmp_path / f"x.{suffix}"
    if suffix == "zip":
        zip_of(archive, members)
    else:
        tar_of(archive, members, {"tar": "w", "tar.gz": "w:gz", "tar.xz": "w:xz"}[suffix])
    with pytest.raises(ArchiveError, match=message) as caught:
        extract_archive(archive, tmp_path / "out")
    assert str(archive) in str(caught.value)
    assert repr(name) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "is a link"),
        ({"type": tarfile.LNKTYPE, "linkname": "good.txt"}, "is a link"),
        ({"type": tarfile.CHRTYPE}, "is a device or pipe"),
        ({"type": tarfile.FIFOTYPE}, "is a device or pipe"),
    ],
)
def test_links_and_devices_are_refused(tmp_path, member, message):
    archive = tar_of(tmp_path / "x.tar.gz", {"good.txt": b"good", "bad": member})
    with pytest.raises(ArchiveError, match=rf"x\.tar\.gz: member 'bad' {message}"):
        extract_archive(archive, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar.gz"]


def test_links_in_zip_files_and_names_that_come_twice_are_refused(tmp_path):
    archive = zip_of(tmp_path / "x.zip", {"l": {"mode": 0o120777, "linkname": "/etc/passwd"}})
    with pytest.raises(ArchiveError, match="member 'l' is a link"):
        extract_archive(archive, tmp_path / "out")
    tar_of(tmp_path / "y.tar", {"a": b"1", "./a": b"2"}, "w")
    with pytest.raises(ArchiveError, match="member 'a' comes twice"):
        extract_archive(tmp_path / "y.tar", tmp_path / "out")


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "zip"])
def test_damaged_archives_are_named_and_leave_nothing(tmp_path, suffix):
    archive = tmp_path / f"x.{suffix}"
    members = {"a.txt": bytes(range(256)) * 4000, "b.txt": b"b"}
    if suffix == "zip":
        zip_of(archive, members)
    else:
        tar_of(archive, members, {"tar": "w", "tar.gz": "w:gz"}[suffix])
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(ArchiveError, match=rf"x\.{suffix}: "):
        extract_archive(archive, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path):
    archive = tar_of(tmp_path / "x.tar.gz", {"zeros": bytes(5_000_000)})
    with pytest.raises(ArchiveError, match="more than 1000000 bytes at member 'zeros'"):
        extract_archive(archive, tmp_path / "out", largest_total=1_000_000)
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar.gz"]
