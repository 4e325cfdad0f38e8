"""Brings one file over http: goes on with a partial one, tries again, checks before renaming."""

from __future__ import annotations

import errno
import http.client
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from flan_moe.data.fetch.catalogue import PART

CHUNK_BYTES = 1 << 18
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses that may pass
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
LONGEST_PAUSE = 60.0


SCHEMES = ("http", "https")


class FetchError(OSError):
    """A file that could not be brought; the message names its address and the reason."""


class _Passing(Exception):  # noqa: N818 - never seen outside
    """A failure that may be gone at the next try, and how long the server asks to wait."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


class _WebOnly(HTTPRedirectHandler):
    """Follows redirections to the web; urllib's own also lets a server send us to ftp."""

    def redirect_request(self, *arguments: Any) -> Request | None:
        url = arguments[-1]
        try:
            scheme = urlsplit(url).scheme
        except ValueError:
            scheme = ""
        if scheme not in SCHEMES:
            raise FetchError(f"redirected to {url!r}; expected an http or https address")
        return super().redirect_request(*arguments)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to insist.

    Attributes:
        tries: Connections without a new byte before giving up.
        pause: Seconds after the first failure; doubled after each further one.
        timeout: Seconds without a byte before a connection counts as failed.
    """

    tries: int = 5
    pause: float = 1.0
    timeout: float = 60.0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: One is out of range; names it.
        """
        if self.tries < 1:
            raise ValueError(f"tries is {self.tries}; expected 1 or more")
        if self.pause < 0:
            raise ValueError(f"pause is {self.pause}; expected 0 or more")
        if self.timeout <= 0:
            raise ValueError(f"timeout is {self.timeout}; expected more than 0")


def download(
    url: str,
    path: Path,
    *,
    wrong: Callable[[Path], str | None],
    size: int | None = None,
    patience: Patience | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> int:
    """Bring a file.

    The bytes go to ``<path>.part``, which a later call goes on with. ``path`` appears when they are
    right.

    Args:
        url: An http or https address.
        path: Where the file goes; its directory exists.
        wrong: What is wrong with a complete file's content, or None.
        size: Of the file, if known.
        patience: How long to insist.
        stopped: Whether to give up, asked between chunks.

    Returns:
        The number of bytes that came over the network.

    Raises:
        FetchError: The address does not answer, has no such file or another one, or there is no
            room for it.
    """
    if urlsplit(url).scheme not in SCHEMES:
        raise FetchError(f"{url}: expected an http or https address")
    patience = patience or Patience()
    part = path.with_name(path.name + PART)
    resumed = part.exists() and part.stat().st_size > 0
    received = _bring(url, part, size, patience, stopped)
    problem = wrong(part)
    if problem is not None and resumed:
        # What an earlier run left may have been of another file: once more from the start.
        part.unlink()
        received += _bring(url, part, size, patience, stopped)
        problem = wrong(part)
    if problem is not None:
        part.unlink()
        raise FetchError(f"{url}: the content is not what the catalogue names: {problem}")
    os.replace(part, path)
    return received


def _bring(
    url: str, part: Path, size: int | None, patience: Patience, stopped: Callable[[], bool]
) -> int:
    """Fetch until the partial file is complete; returns the number of bytes received."""
    received, failures, furthest = 0, 0, 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        furthest = max(furthest, before)
        if size is not None and before == size:
            part.touch()  # an empty file needs no request
            return received
        try:
            received += _one_request(url, part, size, patience.timeout, stopped)
        except _Passing as failure:
            now = part.stat().st_size if part.exists() else 0
            received += max(now - before, 0)
            # Against the best so far: a server may begin again each time and break off anywhere.
            failures = 1 if now > furthest else failures + 1
            if failures >= patience.tries:
                raise FetchError(f"{url}: {failure} ({failures} tries)") from failure
            pause = failure.pause or patience.pause * 2 ** (failures - 1)
            time.sleep(min(pause, LONGEST_PAUSE))
        else:
            return received


def _one_request(
    url: str, part: Path, size: int | None, timeout: float, stopped: Callable[[], bool]
) -> int:
    have = part.stat().st_size if part.exists() else 0
    if size is not None and have > size:
        part.unlink()
        have = 0
    request = Request(url, headers={"User-Agent": "flan-moe-data", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with build_opener(_WebOnly).open(request, timeout=timeout) as response:
            goes_on = response.status == 206 and _starts_at(response, have)
            with part.open("ab" if goes_on else "wb") as stream:
                most = None if size is None else size - (have if goes_on else 0)
                return _copy(response, stream, url, stopped, most)
    except HTTPError as error:
        if error.code == 416 and have:  # there is nothing after what we have
            if size is None:
                return 0
            part.unlink()
            raise _Passing("the partial file does not fit the server's") from error
        if error.code in AGAIN:
            raise _Passing(f"HTTP status {error.code} {error.reason}", _asked(error)) from error
        raise FetchError(f"{url}: HTTP status {error.code} {error.reason}") from error
    except (URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise _Passing(f"no answer: {reason}") from error
    except FetchError as error:
        raise error if url in str(error) else FetchError(f"{url}: {error}") from error
    except ValueError as error:  # an address to be redirected to that is none
        raise FetchError(f"{url}: {error}") from error
    except OSError as error:
        if error.errno in NO_ROOM:
            part.unlink(missing_ok=True)
            raise FetchError(
                error.errno, f"{url}: no room at {part.parent}: {os.strerror(error.errno or 0)}"
            ) from error
        raise


def _starts_at(response: http.client.HTTPResponse, have: int) -> bool:
    told = response.headers.get("Content-Range", "")
    if not told.startswith(f"bytes {have}-"):
        raise _Passing(f"the server sent {told or 'an unknown range'}; asked for bytes {have}-")
    return True


def _copy(
    response: http.client.HTTPResponse,
    stream: BinaryIO,
    url: str,
    stopped: Callable[[], bool],
    most: int | None,
) -> int:
    total = 0
    expected = response.length
    while chunk := response.read(CHUNK_BYTES):
        stream.write(chunk)
        total += len(chunk)
        if most is not None and total > most:
            return total  # another file, perhaps without end; its content will be found wrong
        if stopped() and not response.isclosed():  # it closes itself after the last byte
            raise FetchError(f"{url}: given up")
    if expected is not None and total < expected:
        raise _Passing(f"the connection ended after {total} of {expected} bytes")
    return total


def _asked(error: HTTPError) -> float | None:
    told = error.headers.get("Retry-After", "") if error.headers else ""
    return float(told) if told.isdecimal() and told.isascii() else None
