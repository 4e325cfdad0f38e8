"""Fetching from a real local web server: resumed, checked, and never half-written."""

import contextlib
import hashlib
import http.server
import io
import json
import shutil
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from flan_moe.data.cli import main
from flan_moe.data.fetch.catalogue import entry_names, parse_entry, read_entry
from flan_moe.data.fetch.content import difference
from flan_moe.data.fetch.download import FetchError, Patience
from flan_moe.data.fetch.run import FetchOptions, fetch, fetch_from_archive

FILES = {
    "tasks/a.json": b"".join(b"%d " % i for i in range(60_000)),
    "tasks/b.json": b"second",
    "LICENSE": b"as is\n",
}


def git_blob(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def entry(base_url, files=FILES, **changes):
    listed = [
        {
            "path": name,
            "save_as": name,
            "git_blob": git_blob(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
        }
        for name, data in files.items()
    ]
    content = {
        "name": "small",
        "title": "Some files",
        "repository": "owner/small",
        "commit": "0" * 40,
        "licence": "CC BY-NC 4.0",
        "notice": "Non-commercial use only.",
        "evaluation_only": False,
        "base_url": base_url,
        "archive_url": f"{base_url}/archive.tar.gz",
        "files": listed,
    }
    return parse_entry({**content, **changes}, "test")


class Server:
    """Serves ``files`` with ranges, and fails as told."""

    def __init__(self):
        self.files, self.requests = dict(FILES), []
        self.statuses = []  # of the next requests, instead of an answer
        self.cut_after = []  # bytes after which the next answers break off
        self.ranges = True
        self.redirect = self.retry_after = None
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.answer(self)

            def log_message(self, *arguments):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        )
        self._thread.start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def answer(self, handler):
        name, asked = handler.path.lstrip("/"), handler.headers.get("Range")
        self.requests.append((name, asked))
        if self.redirect:
            return self._status(handler, 302, Location=self.redirect)
        if self.statuses:
            wait = {"Retry-After": self.retry_after} if self.retry_after else {}
            return self._status(handler, self.statuses.pop(0), **wait)
        if name not in self.files:
            return self._status(handler, 404)
        data, start = self.files[name], 0
        if asked and self.ranges:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(data):
                return self._status(handler, 416)
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        handler.send_header("Content-Length", str(len(data) - start))
        handler.end_headers()
        body = data[start:]
        if self.cut_after:
            body = body[: self.cut_after.pop(0)]
            handler.close_connection = True
        with contextlib.suppress(ConnectionError):  # a client may have seen enough
            handler.wfile.write(body)
        return None

    def _status(self, handler, status, **headers):
        handler.send_response(status)
        for key, value in headers.items():
            handler.send_header(key, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def options(**given):
    return FetchOptions(**{"patience": Patience(tries=3, pause=0.01, timeout=5), **given})


def fetched(directory):
    """The files under their final names, without the note of their source."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name not in ("SOURCE.json", ".lock")
    }


def test_files_are_brought_once_and_right_ones_stay(server, tmp_path):
    lines = []
    result = fetch(entry(server.url), tmp_path, options(), report=lines.append)
    assert (result.there, result.fetched) == (0, 3)
    assert result.received == sum(map(len, FILES.values()))
    assert fetched(tmp_path / "small") == FILES
    assert any("licence: CC BY-NC 4.0" in line for line in lines)
    assert any("Non-commercial use only." in line for line in lines)
    source = json.loads((tmp_path / "small" / "SOURCE.json").read_text())
    assert (source["repository"], source["licence"]) == ("owner/small", "CC BY-NC 4.0")
    server.requests.clear()
    (tmp_path / "small" / "tasks" / "b.json").write_bytes(b"sEcond")
    result = fetch(entry(server.url), tmp_path, options(), report=lines.append)
    assert (result.there, result.fetched) == (2, 1)
    assert server.requests == [("tasks/b.json", None)]
    assert fetched(tmp_path / "small") == FILES


def test_a_cut_connection_is_gone_on_with(server, tmp_path):
    server.cut_after = [100_000, 100_000]
    one = entry(server.url, {"tasks/a.json": FILES["tasks/a.json"]})
    result = fetch(one, tmp_path, options(), report=lambda line: None)
    assert [asked for _, asked in server.requests] == [None, "bytes=100000-", "bytes=200000-"]
    assert result.received == len(FILES["tasks/a.json"])
    assert fetched(tmp_path / "small")["tasks/a.json"] == FILES["tasks/a.json"]


def test_a_later_run_goes_on_with_a_partial_file(server, tmp_path):
    data = FILES["tasks/a.json"]
    one = entry(server.url, {"tasks/a.json": data})
    part = tmp_path / "small" / "tasks" / "a.json.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(data[:150_000])
    result = fetch(one, tmp_path, options(), report=lambda line: None)
    assert server.requests == [("tasks/a.json", "bytes=150000-")]
    assert result.received == len(data) - 150_000
    assert fetched(tmp_path / "small") == {"tasks/a.json": data}


@pytest.mark.parametrize("left", [b"of another file", b"x" * 10_000_000])
def test_a_partial_file_of_something_else_is_begun_again(server, tmp_path, left):
    part = tmp_path / "small" / "tasks" / "a.json.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(left)
    fetch(entry(server.url), tmp_path, options(), report=lambda line: None)
    assert fetched(tmp_path / "small") == FILES


def test_a_server_without_ranges_sends_all_again(server, tmp_path):
    server.ranges, server.cut_after = False, [100_000]
    one = entry(server.url, {"tasks/a.json": FILES["tasks/a.json"]})
    fetch(one, tmp_path, options(), report=lambda line: None)
    assert fetched(tmp_path / "small") == {"tasks/a.json": FILES["tasks/a.json"]}


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.statuses = [503, 429]
    one = entry(server.url, {"LICENSE": FILES["LICENSE"]})
    fetch(one, tmp_path, options(), report=lambda line: None)
    assert len(server.requests) == 3
    server.statuses = [503] * 9
    two = entry(server.url, {"tasks/b.json": FILES["tasks/b.json"]})
    with pytest.raises(FetchError, match=r"b\.json: HTTP status 503 .*\(3 tries\)"):
        fetch(two, tmp_path, options(), report=lambda line: None)


def test_a_missing_file_is_named_at_once(server, tmp_path):
    del server.files["tasks/b.json"]
    one = entry(server.url, {"tasks/b.json": FILES["tasks/b.json"]})
    with pytest.raises(FetchError, match=r"/tasks/b\.json: HTTP status 404 Not Found"):
        fetch(one, tmp_path, options(), report=lambda line: None)
    assert len(server.requests) == 1
    assert fetched(tmp_path / "small") == {}


def test_another_content_is_refused_and_not_kept(server, tmp_path):
    server.files["tasks/b.json"] = b"secomd"
    with pytest.raises(FetchError, match=r"b\.json: the content is not .*sha256 is \w+; expected"):
        fetch(entry(server.url), tmp_path, options(workers=1), report=lambda line: None)
    left = fetched(tmp_path / "small")
    assert not {name for name in left if "b.json" in name}
    # What came of the others is right, or has another name and is gone on with.
    for name, data in left.items():
        assert FILES[name.removesuffix(".part")][: len(data)] == data
        assert name.endswith(".part") or FILES[name] == data
    server.files["tasks/b.json"] = b"shorter"
    with pytest.raises(FetchError, match="7 bytes; expected 6"):
        fetch(entry(server.url), tmp_path, options(workers=1), report=lambda line: None)


def test_a_dead_remote_is_named(server, tmp_path):
    server.close()
    with pytest.raises(FetchError, match=rf"{server.url}/\S+: no answer: .*refused.* \(3 tries\)"):
        fetch(entry(server.url), tmp_path, options(), report=lambda line: None)
    assert fetched(tmp_path / "small") == {}


def test_a_silent_remote_is_given_up(tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        patience = Patience(tries=2, pause=0.01, timeout=0.2)
        with pytest.raises(FetchError, match=r"no answer: timed out \(2 tries\)"):
            fetch(entry(url), tmp_path, options(patience=patience), report=lambda line: None)


def test_too_little_room_is_said_before_anything_is_sent(server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(FetchError, match=r"small: 1,000 bytes are free; \d+,\d+ are needed"):
        fetch(entry(server.url), tmp_path, options(), report=lambda line: None)
    assert server.requests == []


FULL = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
from flan_moe.data.cli import main
sys.exit(main(["fetch", "--catalogue", sys.argv[1], "--only", "tasks/*", "--out", sys.argv[2]]))
"""


def test_a_full_disk_leaves_nothing_half_written(server, tmp_path):
    """The system's own limit on the size of files, which fails as a full disk does."""
    catalogue = tmp_path / "entry.json"
    catalogue.write_text(json.dumps(as_json(entry(server.url))))
    run = subprocess.run(
        [sys.executable, "-c", FULL, catalogue, tmp_path / "out"], capture_output=True, text=True
    )
    assert run.returncode == 1
    assert "a.json: no room at" in run.stderr
    assert "Traceback" not in run.stderr
    left = fetched(tmp_path / "out" / "small")
    assert set(left) <= {"tasks/b.json", "tasks/b.json.part"}
    assert left.get("tasks/b.json", FILES["tasks/b.json"]) == FILES["tasks/b.json"]


def as_json(one):
    return {**vars(one), "files": [vars(file) for file in one.files]}


def test_only_some_files(server, tmp_path):
    fetch(entry(server.url), tmp_path, options(only=("tasks/*",)), report=lambda line: None)
    assert set(fetched(tmp_path / "small")) == {"tasks/a.json", "tasks/b.json"}
    with pytest.raises(ValueError, match="small: none of its 3 files match 'x'"):
        fetch(entry(server.url), tmp_path, options(only=("x",)), report=lambda line: None)


def tar_of(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("folder", ["", "small-000/"])
def test_files_are_taken_out_of_an_archive(server, tmp_path, folder):
    members = {f"{folder}{name}": data for name, data in FILES.items()}
    archive = tar_of(tmp_path / "x.tar.gz", {**members, f"{folder}more": b"not listed"})
    one = entry(server.url)
    fetch_from_archive(one, tmp_path / "local", archive, options(), report=lambda line: None)
    server.files["archive.tar.gz"] = archive.read_bytes()
    fetch_from_archive(one, tmp_path / "web", one.archive_url, options(), report=lambda line: None)
    for place in ("local", "web"):
        assert fetched(tmp_path / place / "small") == FILES
    assert [name for name, _ in server.requests] == ["archive.tar.gz"]


def test_an_archive_with_another_content_is_refused(server, tmp_path):
    for members, message in (
        ({**FILES, "LICENSE": b"as iz\n"}, "LICENSE: sha256 is"),
        ({"LICENSE": FILES["LICENSE"]}, r"has no tasks/\w\.json"),
    ):
        archive = tar_of(tmp_path / "x.tar.gz", members)
        with pytest.raises(FetchError, match=message):
            fetch_from_archive(
                entry(server.url), tmp_path, archive, options(), report=lambda line: None
            )
        assert fetched(tmp_path / "small") == {}


# ---- the packaged catalogue ----


def test_every_entry_is_pinned_by_commit_and_hash():
    assert set(entry_names()) >= {
        "asdiv",
        "bbh",
        "flan_cot",
        "gsm8k",
        "mmlu",
        "natural_instructions",
        "promptsource",
        "strategyqa",
        "svamp",
    }
    for name in entry_names():
        one = read_entry(name)
        assert one.name == name
        assert len(one.commit) == 40
        assert one.commit in one.base_url
        assert one.commit in one.archive_url
        assert one.licence
    assert len(read_entry("natural_instructions").files) == 1613
    assert len([f for f in read_entry("mmlu").files if f.path.endswith(".csv")]) == 3 * 57
    assert "on-commercial" in read_entry("asdiv").notice
    assert read_entry("bbh").evaluation_only
    assert "canary" in read_entry("bbh").notice
    with pytest.raises(ValueError, match="'bhb' is not in the catalogue; expected one of asdiv"):
        read_entry("bhb")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "../x"}, "path is '../x'; expected a relative path"),
        ({"save_as": "/x"}, "save_as is '/x'; expected a relative path"),
        ({"git_blob": "xyz"}, "git_blob is 'xyz'; expected 40 hexadecimal digits"),
    ],
)
def test_an_entry_that_would_write_elsewhere_is_refused(change, message):
    content = as_json(entry("http://x"))
    content["files"][0] |= change
    with pytest.raises(ValueError, match=f"test: {message}"):
        parse_entry(content, "test")


def test_what_git_calls_a_content(tmp_path):
    """The empty file, whose name in git is known by heart, and by git itself."""
    (tmp_path / "x").write_bytes(FILES["tasks/b.json"])
    told = subprocess.run(["git", "hash-object", tmp_path / "x"], capture_output=True, text=True)
    files = {"x": FILES["tasks/b.json"]}
    (one,) = entry("http://x", files).files
    assert told.stdout.strip() == one.git_blob
    assert difference(tmp_path / "x", one) is None
    (tmp_path / "x").write_bytes(b"")
    (empty,) = entry("http://x", {"x": b""}).files
    assert empty.git_blob == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert difference(tmp_path / "x", empty) is None


RAW = Path(__file__).parents[4] / "shared/data/raw.tar.xz"


@pytest.mark.skipif(not RAW.is_file(), reason=f"needs the real raw files in {RAW}")
def test_real_files_are_those_of_the_catalogue(server, tmp_path):
    """Flan CoT and SVAMP as published, served from here and fetched as from the code host."""
    folders = {"raw/flan_cot/": "flan/v2/cot_data/", "raw/svamp/": ""}
    with tarfile.open(RAW) as tar:
        for member in tar:
            name = member.name.removeprefix("./")
            for folder, path in folders.items():
                if name.startswith(folder) and member.isreg():
                    data = tar.extractfile(member).read()
                    server.files[path + name.removeprefix(folder)] = data
    result = fetch(
        read_entry("flan_cot"),
        tmp_path,
        options(base_url=server.url, only=("gsm8k*", "aqua*")),
        report=lambda line: None,
    )
    assert result.fetched == 2
    arguments = ["fetch", "svamp", "--base-url", server.url, "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert len(json.loads((tmp_path / "svamp" / "SVAMP.json").read_text())) == 1000
    server.files["SVAMP.json"] = server.files["SVAMP.json"].replace(b"chal-7", b"chal-8", 1)
    (tmp_path / "svamp" / "SVAMP.json").unlink()
    assert main(arguments) == 1
    assert not (tmp_path / "svamp" / "SVAMP.json").exists()


def test_the_command(server, tmp_path, capsys):
    assert main(["fetch", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in entry_names())
    assert "CC BY-NC 4.0" in listed
    for arguments, message in (
        (["fetch"], "no NAME; expected one or more of asdiv"),
        (["fetch", "bbh"], "--out: missing"),
        (["fetch", "nothing", "--out", "x"], "'nothing' is not in the catalogue"),
        (["fetch", "bbh", "svamp", "--out", "x", "--base-url", "y"], "--base-url is for one NAME"),
        (["fetch", "bbh", "--out", str(tmp_path), "--workers", "0"], "workers is 0"),
    ):
        assert main(arguments) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../small", "/tmp/small", "a/b", "", ".", "a\0b"])
def test_an_entry_whose_name_leaves_the_directory_is_refused(name):
    with pytest.raises(ValueError, match=r"test: name is .*expected the name"):
        entry("http://localhost", name=name)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["./a"], r"path is './a'; expected a relative path"),
        (["a//b"], r"path is 'a//b'"),
        (["."], r"path is '\.'"),
        (["a\0b"], "path is 'a"),
        (["SOURCE.json"], "save_as is 'SOURCE.json'; that name is kept"),
        ([".lock"], r"save_as is '\.lock'; that name is kept"),
        (["a", "a.part"], r"save_as is 'a\.part'; that name is kept"),
        (["a", "A"], "each with a name of its own"),
        (["a", "a/b"], "'a' is a file and the folder of 'a/b'"),
    ],
)
def test_files_that_are_in_each_others_way_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        entry("http://localhost", dict.fromkeys(names, b"x"))


def test_hashes_and_sizes_of_another_type_are_refused():
    file = {"path": "a", "save_as": "a", "git_blob": git_blob(b"")}
    texts = ("name", "title", "repository", "commit", "licence", "notice", "base_url")
    whole = {**dict.fromkeys((*texts, "archive_url"), "x"), "evaluation_only": False}
    for key, value in (("bytes", "5"), ("bytes", -1), ("git_blob", 5), ("sha256", 5)):
        with pytest.raises(ValueError, match=rf"files\[0\]\.{key} is "):
            parse_entry({**whole, "files": [{**file, key: value}]}, "test")


def test_an_empty_file_is_brought(server, tmp_path):
    server.files = {"empty": b""}
    fetch(entry(server.url, server.files), tmp_path, options(), report=lambda line: None)
    assert fetched(tmp_path / "small") == server.files


def test_a_server_that_begins_again_and_breaks_off_anywhere_is_given_up(server, tmp_path):
    server.ranges, server.cut_after = False, [500, 1000] * 20
    with pytest.raises(FetchError, match=r"the connection ended after .*\(3 tries\)"):
        fetch(entry(server.url), tmp_path, options(workers=1), report=lambda line: None)
    assert len(server.requests) < 8


def test_no_more_is_taken_than_a_file_of_that_size(server, tmp_path):
    one = {"tasks/b.json": FILES["tasks/b.json"]}
    server.files["tasks/b.json"] = b"x" * 5_000_000
    with pytest.raises(FetchError, match="not what the catalogue names: 262144 bytes; expected 6"):
        fetch(entry(server.url, one), tmp_path, options(), report=lambda line: None)
    assert fetched(tmp_path / "small") == {}


@pytest.mark.parametrize("target", ["ftp://127.0.0.1:1/x", "file:///etc/hosts", "http://[::1"])
def test_a_redirection_that_leaves_the_web_is_refused(server, tmp_path, target):
    server.redirect = target
    with pytest.raises(FetchError, match=r"tasks/\w\.json|LICENSE") as caught:
        fetch(entry(server.url), tmp_path, options(workers=1), report=lambda line: None)
    assert "no answer" not in str(caught.value)


def test_a_server_that_asks_to_wait_in_odd_digits_is_asked_again(server, tmp_path):
    server.statuses, server.retry_after = [503], "\u00b2"
    fetch(entry(server.url), tmp_path, options(workers=1), report=lambda line: None)
    assert fetched(tmp_path / "small") == FILES


@pytest.mark.parametrize("order", [1, -1])
def test_namesakes_in_folders_of_an_archive_are_not_mistaken(tmp_path, order):
    members = {"LICENSE": FILES["LICENSE"], "other/LICENSE": b"not this"}
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        for name, data in list(members.items())[::order]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    wanted = entry("http://localhost", {"LICENSE": FILES["LICENSE"]})
    quietly = {"report": lambda line: None}
    fetch_from_archive(wanted, tmp_path, str(tmp_path / "x.tar.gz"), options(), **quietly)
    assert fetched(tmp_path / "small") == {"LICENSE": FILES["LICENSE"]}
