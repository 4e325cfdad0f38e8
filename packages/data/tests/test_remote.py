"""Data directories at a distance: the same samples over HTTP and S3, one error for each fault."""

import http.server
import json
import socket
import threading
import time
from functools import partial
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from flan_moe.data.streaming.loader import dataloader
from flan_moe.data.streaming.remote import DownloadError, Location, fetch, open_remote_directory

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; ``faults`` maps the end of a path to what happens to it."""

    def __init__(self, *args, faults, requests, **kwargs):
        self.faults, self.requests = faults, requests
        super().__init__(*args, **kwargs)

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.requests.append(self.path)
        for end, fault in self.faults.items():
            if self.path.endswith(end):
                fault(self)
                return
        super().do_GET()


class Server:
    """An HTTP server for a folder."""

    def __init__(self, folder):
        self.faults, self.requests = {}, []
        handler = partial(Quiet, directory=str(folder), faults=self.faults, requests=self.requests)
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def stop(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server(mini):
    served = Server(mini)
    yield served
    served.stop()


@pytest.fixture(scope="module")
def bucket(mini):
    """A real S3 protocol server with the data directory in bucket ``flan``, folder ``v1/mini``."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    environment = {
        "S3_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment.items():
            patch.setenv(key, value)
        client = boto3.client("s3", endpoint_url=endpoint)
        client.create_bucket(Bucket="flan")
        for file in sorted(mini.rglob("*")):
            if file.is_file() and "webdataset" not in file.parts:
                client.upload_file(str(file), "flan", f"v1/mini/{file.relative_to(mini)}")
        yield client
    moto.stop()


def contents(batches):
    return [{key: value.tolist() for key, value in batch.items()} for batch in batches]


OPTIONS = {"batch_size": 24, "epoch_size": 240, "seed": 3}


@pytest.mark.parametrize("workers", [0, 2])
def test_http_gives_the_batches_of_the_folder(mini, server, tmp_path, workers):
    expected = dataloader(mini, **OPTIONS)
    found = dataloader(server.url, cache=tmp_path, num_workers=workers, **OPTIONS)
    for _ in range(2):
        assert contents(found) == contents(expected)
    shards = [path for path in server.requests if path.endswith(".mds")]
    assert len(shards) == len(set(shards)) > 4, "every shard once"
    assert not list(tmp_path.rglob("*.part"))
    asked = len(server.requests)
    again = dataloader(server.url, cache=tmp_path, **OPTIONS)
    contents(again)
    assert server.requests[asked:] == ["/manifest.json"], "all else is in the cache"


@pytest.mark.parametrize("workers", [0, 2])
def test_s3_gives_the_batches_of_the_folder_and_resumes(mini, bucket, tmp_path, workers):
    expected = contents(dataloader(mini, **OPTIONS))
    url = "s3://flan/v1/mini"
    before = dataloader(url, cache=tmp_path / "a", num_workers=workers, **OPTIONS)
    iterator = iter(before)
    assert contents(next(iterator) for _ in range(4)) == expected[:4]
    state = json.loads(json.dumps(before.state_dict()))
    after = dataloader(url, cache=tmp_path / "b", num_workers=workers, **OPTIONS)
    after.load_state_dict(state)
    assert contents(after) == expected[4:]


def missing(handler):
    handler.send_error(404)


def overloaded(handler):
    handler.send_error(503)


def truncated(handler):
    """Promises more than it sends."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    handler.wfile.write(b"x" * 100)
    handler.close_connection = True


def short(handler):
    """Sends less, and says so."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.write(b"x" * 100)


def damaged(handler):
    """Sends as many bytes, one of them wrong."""
    data = bytearray(Path(handler.translate_path(handler.path)).read_bytes())
    data[-1] ^= 1
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def silent(handler):
    """Accepts the connection and says nothing."""
    time.sleep(1)


SHARD = "/train/cot/shard.00000.mds"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (missing, "HTTP 404 Not Found"),
        (truncated, "100 of 100000 bytes came|IncompleteRead"),
        (short, r"100 bytes; expected \d+ \(truncated or replaced\?\)"),
        (damaged, "its sha256 is not the expected"),
        (silent, "TimeoutError"),
    ],
)
def test_a_shard_that_cannot_be_had_is_one_error_naming_its_url(
    server, tmp_path, fault, reason, workers, monkeypatch
):
    monkeypatch.setattr("flan_moe.data.streaming.remote.BACKOFF_S", 0.01)
    server.faults[SHARD] = fault
    loader = dataloader(server.url, cache=tmp_path, num_workers=workers, timeout=0.3, **OPTIONS)
    start = time.monotonic()
    with pytest.raises(DownloadError, match=rf"(?s){server.url}{SHARD}: .*({reason})"):
        list(loader)
    assert time.monotonic() - start < 30
    del loader
    while list(tmp_path.rglob("*.part")):  # what was being fetched ahead comes to its end
        assert time.monotonic() - start < 40
        time.sleep(0.01)
    assert not list(tmp_path.rglob("cot/shard.00000.mds")), "nothing half-written"


def test_a_passing_fault_is_waited_out(mini, server, tmp_path, monkeypatch):
    monkeypatch.setattr("flan_moe.data.streaming.remote.BACKOFF_S", 0.01)

    def once(handler):
        server.faults.clear()
        overloaded(handler)

    server.faults[SHARD] = once
    found = dataloader(server.url, cache=tmp_path, **OPTIONS)
    assert contents(found) == contents(dataloader(mini, **OPTIONS))


@pytest.mark.parametrize(
    "name", ["manifest.json", "train/niv2/tasks.json", "train/niv2/index.json"]
)
@pytest.mark.parametrize("fault", [missing, damaged])
def test_small_files_are_verified_before_training(server, tmp_path, name, fault, monkeypatch):
    monkeypatch.setattr("flan_moe.data.streaming.remote.BACKOFF_S", 0.01)
    server.faults[f"/{name}"] = fault
    with pytest.raises((DownloadError, ValueError), match=f"{server.url}/{name}: "):
        dataloader(server.url, cache=tmp_path, **OPTIONS)


def test_a_missing_object_of_a_bucket_is_named(bucket, tmp_path):
    key = "v1/mini/train/cot/shard.00000.mds"
    body = bucket.get_object(Bucket="flan", Key=key)["Body"].read()
    bucket.delete_object(Bucket="flan", Key=key)
    try:
        loader = dataloader("s3://flan/v1/mini", cache=tmp_path, **OPTIONS)
        with pytest.raises(DownloadError, match=rf"s3://flan/{key}: NoSuchKey"):
            list(loader)
    finally:
        bucket.put_object(Bucket="flan", Key=key, Body=body)
    with pytest.raises(DownloadError, match=r"s3://nobody/v1/manifest.json: NoSuchBucket"):
        dataloader("s3://nobody/v1", cache=tmp_path, **OPTIONS)


@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_a_dead_remote_is_refused_at_once(tmp_path, scheme, monkeypatch):
    monkeypatch.setattr("flan_moe.data.streaming.remote.BACKOFF_S", 0.01)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("S3_ENDPOINT_URL", dead)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    url = {"http": dead, "s3": "s3://bucket/data"}[scheme]
    start = time.monotonic()
    with pytest.raises(
        DownloadError, match=f"{url}/manifest.json: cannot be fetched in 3 attempts"
    ):
        dataloader(url, cache=tmp_path, timeout=1.0, **OPTIONS)
    assert time.monotonic() - start < 10


def test_a_directory_that_was_built_anew_is_not_mixed_with_the_old(server, tmp_path, mini):
    first = open_remote_directory(Location(url=server.url), tmp_path)
    manifest = json.loads((mini / "manifest.json").read_text())

    def other(handler):
        data = json.dumps({**manifest, "name": "another"}).encode()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    server.faults["/manifest.json"] = other
    assert open_remote_directory(Location(url=server.url), tmp_path) != first


def test_a_place_that_cannot_be_written_leaves_nothing(server, tmp_path, monkeypatch):
    monkeypatch.setattr("flan_moe.data.streaming.remote.BACKOFF_S", 0.01)
    folder = tmp_path / "shard"
    folder.mkdir()  # a folder where the file belongs: the last step of writing fails
    with pytest.raises(DownloadError, match=rf"{server.url}{SHARD}: .*IsADirectoryError"):
        fetch(Location(url=f"{server.url}{SHARD}"), folder)
    assert list(tmp_path.rglob("*")) == [folder]


def test_unknown_kinds_of_location_are_named():
    with pytest.raises(
        ValueError, match=r"ftp://x/y: no such kind of location; expected one of .*s3"
    ):
        dataloader("ftp://x/y", batch_size=4)
    with pytest.raises(ValueError, match="timeout is 0"):
        Location(url="http://x", timeout=0)
