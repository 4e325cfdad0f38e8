"""Files as they are or compressed: ``.gz`` and ``.xz`` are decompressed while they are read."""

from __future__ import annotations

import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from flan_moe.data.readers.errors import RawDataError
from flan_moe.data.readers.location import BUFFER_BYTES, RawFile

LONGEST_LINE = 1 << 29  # bytes: a line may hold a whole task of Natural Instructions
LARGEST_FILE = 1 << 31  # bytes of a file that is one JSON value


def packed_lines(file: RawFile) -> Iterator[tuple[int, bytes]]:
    """The lines with their numbers, without the line ends.

    Raises:
        RawDataError: The file is missing or damaged, a line has no end in sight, or the last one
            has none, which is how a truncated file looks.
    """
    number = 0
    with _refusing(file), _open(file) as stream:
        while line := stream.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                raise RawDataError(f"{file}:{number}: longer than {LONGEST_LINE} bytes")
            if not line.endswith(b"\n"):
                raise RawDataError(
                    f"{file}:{number}: the last line has no line end; the file is truncated"
                )
            yield number, line[:-1]


def plain_bytes(file: RawFile) -> bytes:
    """All of a file.

    Raises:
        RawDataError: It is missing or damaged, or too large to be held in memory.
    """
    with _refusing(file), _open(file) as stream:
        data = stream.read(LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise RawDataError(f"{file}: more than {LARGEST_FILE} bytes, decompressed")
    return data


@contextmanager
def _open(file: RawFile) -> Iterator[IO[bytes]]:
    with file.open("rb") as raw:
        if file.name.endswith(".xz"):
            with io.BufferedReader(_Xz(raw), BUFFER_BYTES) as stream:
                yield stream
        elif file.name.endswith(".gz"):
            with gzip.open(raw) as stream:
                yield stream
        else:
            yield raw


class _Xz(io.RawIOBase):
    """The bytes of an xz file, all streams of it.

    `lzma.LZMAFile` takes a later stream that is damaged for the end of the file.
    """

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw, self._stream, self._packed = raw, lzma.LZMADecompressor(), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._stream.eof:
                # Streams may be followed by zeros, four at a time.
                rest = self._stream.unused_data or self._packed
                while not rest.lstrip(b"\0"):
                    rest = self._raw.read(io.DEFAULT_BUFFER_SIZE)
                    if not rest:
                        return 0
                self._stream, self._packed = lzma.LZMADecompressor(), rest.lstrip(b"\0")
            if self._stream.needs_input and not self._packed:
                self._packed = self._raw.read(io.DEFAULT_BUFFER_SIZE)
                if not self._packed:
                    raise EOFError("it ends before the end-of-stream marker")
            data = self._stream.decompress(self._packed, len(buffer))
            self._packed = b""
            if data:
                buffer[: len(data)] = data
                return len(data)


@contextmanager
def _refusing(file: RawFile) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise RawDataError(f"{file}: no such file") from None
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise RawDataError(f"{file}: cannot be decompressed: {error}; is it truncated?") from error
