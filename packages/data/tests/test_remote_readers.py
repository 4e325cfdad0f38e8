"""Raw files on a web server and in an S3 store: the same rows as on disk, and clear failures."""

import functools
import http.server
import json
import shutil
import threading
from functools import partial

import pytest

from flan_moe.data.readers import (
    RawDataError,
    cot_files,
    jsonl_files,
    natural_instructions_files,
    read_cot_task,
    read_jsonl_task,
    read_natural_instructions_task,
)
from flan_moe.data.readers.location import RemoteFile, as_file, fingerprint
from flan_moe.data.readers.templated import read_templated_rows, templated_files
from flan_moe.data.sources.raw import RawOptions, raw_sources
from flan_moe.data.spool.ingest import ingest
from flan_moe.data.spool.options import IngestOptions
from flan_moe.data.spool.progress import Progress
from flan_moe.data.spool.reader import spool_tasks

QUIET = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


@pytest.fixture
def raw(tmp_path, dump):
    """A folder with every format."""
    folder = tmp_path / "raw"
    (folder / "ni" / "tasks").mkdir(parents=True)
    for number in range(2):
        task = {
            "Definition": ["Say it again."],
            "Positive Examples": [],
            "Instances": [{"input": f"in {i}", "output": [f"out {i}"]} for i in range(20)],
        }
        (folder / "ni" / "tasks" / f"task{number}_a.json").write_text(json.dumps(task))
    (folder / "cot").mkdir()
    (folder / "cot" / "sums_train.tsv").write_text(
        "".join(f"What is {i} + 1?\t{i + 1}\tOne more than {i}.\n" for i in range(30))
    )
    records = [{"prompt": f"p{i}", "target": f"t{i}"} for i in range(30)]
    dump.write_rows(folder / "plain" / "mine.jsonl.gz", records)
    for suffix in ("parquet", "jsonl", "jsonl.gz"):
        rows = [dump.submix(row) for row in dump.rows(f"task_{suffix[:5]}", count=300)]
        dump.write_rows(folder / "dump" / "data" / f"train-0.{suffix}", rows)
    return folder


class Handler(http.server.SimpleHTTPRequestHandler):
    """Python's own server, which lists folders, with ranges added as real servers have them."""

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        asked = self.headers.get("Range")
        path = self.translate_path(self.path)
        if asked is None or not path.endswith(".parquet"):
            return super().do_GET()
        with open(path, "rb") as stream:
            data = stream.read()
        first, _, last = asked.removeprefix("bytes=").partition("-")
        first, last = int(first), min(int(last or len(data) - 1), len(data) - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        self.wfile.write(data[first : last + 1])
        return None


@pytest.fixture
def web(raw):
    pytest.importorskip("aiohttp")
    handler = functools.partial(Handler, directory=str(raw))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def moto():
    pytest.importorskip("s3fs", reason="the S3 store of fsspec")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def store(raw, moto, monkeypatch):
    """The folder's files in a bucket of a local S3 server."""
    import fsspec

    for key, value in {**QUIET, "AWS_ENDPOINT_URL": moto}.items():
        monkeypatch.setenv(key, value)
    filesystem = fsspec.filesystem("s3", skip_instance_cache=True)
    bucket = f"flan-{raw.parent.name.replace('_', '-').lower()}"[:60]
    filesystem.mkdir(bucket)
    for file in raw.rglob("*"):
        if file.is_file():
            filesystem.put_file(str(file), f"{bucket}/{file.relative_to(raw).as_posix()}")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield f"s3://{bucket}"
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def everything(root):
    """What every reader finds below a root, without where it was found."""
    join = "/".join
    tasks = [
        *map(read_natural_instructions_task, natural_instructions_files(join((str(root), "ni")))),
        *map(read_cot_task, cot_files(join((str(root), "cot")))),
        *map(read_jsonl_task, jsonl_files(join((str(root), "plain")))),
    ]
    rows = [
        (file.path, list(read_templated_rows(file)))
        for file in templated_files(join((str(root), "dump")))
    ]
    return [(t.name, t.definition, t.records, t.read, t.dropped) for t in tasks], rows


def test_a_web_server_gives_what_the_disk_gives(raw, web):
    local = everything(raw)
    assert [name for name, *_ in local[0]] == ["task0_a", "task1_a", "cot_sums", "mine"]
    assert [len(rows) for _, rows in local[1]] == [300, 300, 300]
    assert everything(web) == local


def test_an_s3_store_gives_what_the_disk_gives(raw, store):
    assert everything(store) == everything(raw)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_spool_from_a_web_server(raw, web, tmp_path, workers):
    check_spool(raw, web, tmp_path, workers)


def test_a_spool_from_an_s3_store(raw, store, tmp_path):
    check_spool(raw, store, tmp_path, 2)


def check_spool(raw, remote, tmp_path, workers):
    with (tmp_path / "progress").open("w") as stream:
        quiet = partial(Progress, stream=stream)
        options = IngestOptions(workers=workers)
        ingest([f"{remote}/dump"], tmp_path / "remote", options, progress=quiet)
        ingest([raw / "dump"], tmp_path / "local", IngestOptions(workers=1), progress=quiet)
        # Once more: the store's dates or tags say that nothing changed.
        ingest([f"{remote}/dump"], tmp_path / "remote", options, progress=quiet)
    found, expected = (
        {task.task: list(task.rows()) for task in spool_tasks(tmp_path / place)}
        for place in ("remote", "local")
    )
    assert found == expected
    assert "3 of 3 files are in the spool already" in (tmp_path / "progress").read_text()


def names_of(pattern):
    return [file.file.name for file in templated_files(pattern)]


def check_patterns(root):
    assert names_of(f"{root}/dump/*/*.jsonl*") == ["train-0.jsonl", "train-0.jsonl.gz"]
    assert names_of(f"{root}/**/train-*.parquet") == ["train-0.parquet"]
    with pytest.raises(RawDataError, match=r"expected a \.parquet, \.jsonl or"):
        names_of(f"{root}/dump/*.parquet")


def test_patterns(raw, web):
    check_patterns(raw)
    check_patterns(web)
    with pytest.raises(RawDataError, match=r"cannot be read"):
        names_of(f"http://127.0.0.1:{free_port()}/dump/*.parquet")


def test_patterns_in_an_s3_store(store):
    check_patterns(store)


def test_remote_tasks_are_sources(web):
    sources = raw_sources(RawOptions(), natural_instructions=f"{web}/ni", cot=f"{web}/cot")
    assert [source.name for source in sources] == ["task0_a", "task1_a", "cot_sums"]
    content = sources[2].open(lambda prompt: True)
    assert len(list(content.train)) + len(list(content.validation)) + len(content.items) == 30


def test_a_dead_web_server_is_named(raw, web):
    file = f"{web}/plain/mine.jsonl.gz"
    dead = f"http://127.0.0.1:{free_port()}/plain"
    for read in (
        lambda: jsonl_files(dead),
        lambda: read_jsonl_task(f"{dead}/mine.jsonl.gz"),
        lambda: templated_files(dead),
        lambda: natural_instructions_files(dead),
    ):
        with pytest.raises(RawDataError, match=rf"{dead}\S*: cannot be read \(\w+: "):
            read()
    with pytest.raises(RawDataError, match=r"gone\.jsonl: no such file"):
        read_jsonl_task(f"{web}/gone.jsonl")
    assert read_jsonl_task(file).read == 30


def test_a_folder_that_cannot_be_listed_is_named(web, monkeypatch):
    """Not left out: its files would be missing without a word."""
    listed = Handler.list_directory

    def list_directory(self, path):
        return (
            self.send_error(500) if str(path).rstrip("/").endswith("data") else listed(self, path)
        )

    monkeypatch.setattr(Handler, "list_directory", list_directory)
    with pytest.raises(RawDataError, match=r"dump: cannot be read .*500"):
        templated_files(f"{web}/dump")


def free_port():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def test_a_dead_store_is_named(monkeypatch):
    s3fs = pytest.importorskip("s3fs")
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    url = f"http://127.0.0.1:{free_port()}"
    for key, value in {**QUIET, "AWS_ENDPOINT_URL": url, "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(RawDataError, match="s3://bucket/a: cannot be read"):
        jsonl_files("s3://bucket/a")
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_connection_that_breaks_off_is_named(tmp_path):
    """Half of what the server promised: not taken for the whole file."""
    pytest.importorskip("aiohttp")

    class Broken(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            self.wfile.write(b'{"prompt": "a", "target": "b"}\n' * 10)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        with pytest.raises(RawDataError, match=r"x\.jsonl: cannot be read \(\w*Payload\w*: "):
            read_jsonl_task(f"http://127.0.0.1:{server.server_port}/x.jsonl")
    finally:
        server.shutdown()
        server.server_close()


def test_truncated_remote_files_are_named(raw, web):
    for name in ("train-0.parquet", "train-0.jsonl", "train-0.jsonl.gz"):
        file = raw / "dump" / "data" / name
        file.write_bytes(file.read_bytes()[:-20])
        (remote,) = templated_files(f"{web}/dump/data/{name}")
        with pytest.raises(RawDataError, match=rf"http://\S*{name}:.*(truncated|not a whole)"):
            list(read_templated_rows(remote))


def test_an_unknown_protocol_is_named():
    with pytest.raises(RawDataError, match=r"nothing://a/b: .*nothing"):
        jsonl_files("nothing://a/b")


def test_locations(tmp_path):
    assert as_file("a/b") == as_file(tmp_path.__class__("a/b"))
    assert as_file(f"file://{tmp_path}/x%20y") == tmp_path / "x y"
    remote = as_file("https://host/a/b.jsonl.gz?key=1")
    assert isinstance(remote, RemoteFile)
    assert (remote.name, remote.stem) == ("b.jsonl.gz", "b.jsonl")
    (tmp_path / "f").write_bytes(b"123")
    assert fingerprint(tmp_path / "f")["bytes"] == 3
    shutil.rmtree(tmp_path)
    with pytest.raises(RawDataError, match="no such file"):
        fingerprint(tmp_path / "f")
