"""Rows of a Parquet file, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flan_moe.data.readers.errors import RawDataError
from flan_moe.data.readers.location import BUFFER_BYTES, RawFile, open_seekable

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

BATCH_ROWS = 1024


def read_parquet_rows(
    file: RawFile, choose: Callable[[Collection[str]], list[str]]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows with their numbers from 1, as column and value.

    Memory is bounded by a batch of rows and the pages that it is decoded from.

    Args:
        file: Local or remote; a remote store has to answer range requests.
        choose: Given the columns of the file, those to read.

    Raises:
        RawDataError: pyarrow is not installed, or the file is missing, truncated, damaged or out of
            reach; names the row group.
    """
    try:
        from pyarrow import parquet
    except ImportError:
        raise RawDataError(
            f"{file}: reading Parquet needs pyarrow; pip install 'flan-moe-data[parquet]'"
        ) from None
    with ExitStack() as stack:
        source = file if isinstance(file, Path) else stack.enter_context(open_seekable(file))
        with _naming(str(file)):
            opened: ParquetFile = stack.enter_context(
                parquet.ParquetFile(source, buffer_size=BUFFER_BYTES, pre_buffer=False)
            )
            columns = choose(opened.schema_arrow.names)
        number = 0
        for group in range(opened.num_row_groups):
            batches = opened.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns)
            while True:
                with _naming(f"{file}: row group {group}"):
                    batch = next(batches, None)
                    values = None if batch is None else batch.to_pydict()
                if values is None:
                    break
                for row in zip(*values.values(), strict=True):
                    number += 1
                    yield number, dict(zip(values, row, strict=True))


@contextmanager
def _naming(where: str) -> Iterator[None]:
    from pyarrow import ArrowException

    try:
        yield
    except RawDataError:
        raise
    except FileNotFoundError:
        raise RawDataError(f"{where}: no such file") from None
    except (ArrowException, OSError, EOFError, ValueError) as error:
        cause = _raw_cause(error)
        if cause is not None:
            raise cause from error
        what = " ".join(str(error).split())
        raise RawDataError(f"{where}: not a whole Parquet file: {what}") from error


def _raw_cause(error: BaseException | None) -> RawDataError | None:
    """What the remote file itself raised, if Arrow passed it on."""
    while error is not None:
        if isinstance(error, RawDataError):
            return error
        error = error.__cause__ or error.__context__
    return None
