"""Files as they are or compressed: ``.gz`` and ``.xz`` are decompressed while they are read."""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from flan_moe.data.readers.errors import RawDataError
from flan_moe.data.readers.location import RawFile


def packed_lines(file: RawFile) -> Iterator[tuple[int, bytes]]:
    """The lines with their numbers, without the line ends.

    Raises:
        RawDataError: The file is missing or damaged, or its last line has no end, which is how a
            truncated file looks.
    """
    number = 0
    with _refusing(file), _open(file) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.endswith(b"\n"):
                raise RawDataError(
                    f"{file}:{number}: the last line has no line end; the file is truncated"
                )
            yield number, line[:-1]


def plain_bytes(file: RawFile) -> bytes:
    """All of a file.

    Raises:
        RawDataError: It is missing or damaged.
    """
    with _refusing(file), _open(file) as stream:
        return stream.read()


@contextmanager
def _open(file: RawFile) -> Iterator[IO[bytes]]:
    with file.open("rb") as raw:
        if file.name.endswith(".xz"):
            with lzma.open(raw) as stream:
                yield stream
        elif file.name.endswith(".gz"):
            with gzip.open(raw) as stream:
                yield stream
        else:
            yield raw


@contextmanager
def _refusing(file: RawFile) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise RawDataError(f"{file}: no such file") from None
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise RawDataError(f"{file}: cannot be decompressed: {error}; is it truncated?") from error
