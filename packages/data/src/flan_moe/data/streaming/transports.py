"""How bytes come from a URL: one way per kind of location.

``http(s)://`` is read with the standard library, ``s3://`` with boto3 (which streaming requires;
set ``S3_ENDPOINT_URL`` for a store that is not Amazon's), and what else streaming supports
(``gs://``, ``azure://``, ``oci://``, ``hf://``, ...) with its downloaders and their credentials.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, BinaryIO, Protocol


class FinalError(Exception):
    """A failure that another attempt would not mend."""


class Transport(Protocol):
    """Writes what a URL holds to a stream, waiting at most so many seconds for each step."""

    def __call__(self, url: str, stream: BinaryIO, timeout: float) -> None:
        """Raise `FinalError` where another attempt is in vain, anything else where it is not."""


def transport_for(url: str) -> Transport:
    """The way to read a URL.

    Raises:
        ValueError: There is none for its scheme.
    """
    scheme = urllib.parse.urlparse(url).scheme
    if scheme in ("http", "https"):
        return from_http
    if scheme == "s3":
        return FromS3()
    from streaming.base.storage.download import DOWNLOADER_MAPPINGS

    if not scheme or scheme not in DOWNLOADER_MAPPINGS:
        known = sorted({"http", "https", *(name for name in DOWNLOADER_MAPPINGS if name)})
        raise ValueError(f"{url}: no such kind of location; expected one of {', '.join(known)}")
    return from_streaming


def from_http(url: str, stream: BinaryIO, timeout: float) -> None:
    """Read over HTTP."""
    request = urllib.request.Request(url, headers={"User-Agent": "flan-moe-data"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            shutil.copyfileobj(response, stream)
            expected = response.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        message = f"HTTP {error.code} {error.reason}"
        if error.code < 500 and error.code not in (408, 429):
            raise FinalError(message) from None
        raise ConnectionError(message) from None
    if expected is not None and stream.tell() != int(expected):
        raise ConnectionError(f"{stream.tell()} of {expected} bytes came")


class FromS3:
    """Read from an S3-compatible store; clients are made once per process, as that takes long."""

    def __init__(self) -> None:
        self._clients: dict[tuple[int, float, bool], Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave the clients to the process that made them."""
        return {"_clients": {}}

    def __call__(self, url: str, stream: BinaryIO, timeout: float) -> None:
        """Read an object, without a signature where there are no credentials (public buckets)."""
        from botocore.exceptions import ClientError, NoCredentialsError

        parsed = urllib.parse.urlparse(url)
        wanted = {"Bucket": parsed.netloc, "Key": parsed.path.lstrip("/")}
        try:
            try:
                found = self._client(timeout, signed=True).get_object(**wanted)
            except NoCredentialsError:
                found = self._client(timeout, signed=False).get_object(**wanted)
            shutil.copyfileobj(found["Body"], stream)
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if 400 <= status < 500 and status != 429:
                code = error.response.get("Error", {}).get("Code", status)
                raise FinalError(f"{code}: {error}") from None
            raise

    def _client(self, timeout: float, *, signed: bool) -> Any:
        key = (os.getpid(), timeout, signed)  # a forked process must not share connections
        if key not in self._clients:
            from boto3.session import Session
            from botocore import UNSIGNED
            from botocore.config import Config

            options = {} if signed else {"signature_version": UNSIGNED}
            config = Config(
                connect_timeout=timeout,
                read_timeout=timeout,
                retries={"total_max_attempts": 1},  # the attempts are ours
                **options,
            )
            self._clients[key] = Session().client(
                "s3", config=config, endpoint_url=os.environ.get("S3_ENDPOINT_URL")
            )
        return self._clients[key]


def from_streaming(url: str, stream: BinaryIO, timeout: float) -> None:
    """Read with what mosaicml-streaming has for this kind of location."""
    from streaming.base.storage.download import CloudDownloader

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "file"
        CloudDownloader.direct_download(url, str(file), timeout)
        with file.open("rb") as fetched:
            shutil.copyfileobj(fetched, stream)
