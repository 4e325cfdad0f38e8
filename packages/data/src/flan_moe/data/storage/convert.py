"""The same samples in the other format: MDS shards to WebDataset tars, and back.

Tars hold samples only; what a data directory says about them (manifest, tokenizer, task tables)
stays as it is. So a directory can travel with its tars alone: its shards come back byte for byte.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from flan_moe.data.building.disk import writing
from flan_moe.data.storage.manifest import (
    MANIFEST_FILE,
    Manifest,
    file_sha256,
    open_data_directory,
    read_manifest,
)
from flan_moe.data.storage.provenance import read_provenance
from flan_moe.data.storage.shards import (
    DEFAULT_SHARD_BYTES,
    INDEX,
    ShardError,
    check_mds,
    check_webdataset,
    read_mds,
    read_webdataset,
    write_mds,
    write_webdataset,
)
from flan_moe.data.storage.staging import staged_directory
from flan_moe.data.storage.task_table import TABLE_FILE

FORMATS = ("webdataset", "mds")
TARS = "webdataset"


def convert_data_directory(
    directory: str | Path, to: str, *, overwrite: bool = False
) -> Iterator[str]:
    """Add the tars to a data directory, or make its shards again from them.

    Args:
        directory: Built by ``flan-moe-data``.
        to: ``"webdataset"`` makes ``webdataset/``, as a build with tars does. ``"mds"`` makes the
            shards that are missing or damaged.
        overwrite: Replace tars that are there.

    Yields:
        One line per part.

    Raises:
        FileExistsError: What is asked for is there already.
        ValueError: The directory, or what is read of it, is damaged; names the file.
        DiskFullError: There is no room; the directory is as it was.
    """
    directory = Path(directory)
    if to == "webdataset":
        yield from _add_tars(directory, open_data_directory(directory), overwrite)
    elif to == "mds":
        yield from _restore_shards(directory, read_manifest(directory))
    else:
        raise ValueError(f"to is {to!r}; expected one of {', '.join(FORMATS)}")


def convert_samples(source: str | Path, to: str, out: str | Path) -> int:
    """Write one directory of shards as tars, or one of tars as shards.

    Args:
        source: Holds the ``index.json`` of the other format.
        to: ``"webdataset"`` or ``"mds"``.
        out: Appears when it is complete; must not exist before.

    Returns:
        The number of samples.

    Raises:
        FileExistsError: ``out`` exists.
        ValueError: ``source`` is damaged or of another format; names the file.
        DiskFullError: There is no room.
    """
    if to not in FORMATS:
        raise ValueError(f"to is {to!r}; expected one of {', '.join(FORMATS)}")
    with writing(out):
        if to == "webdataset":
            check_mds(source, hashes=True)
            return write_webdataset(out, read_mds(source))
        check_webdataset(source, hashes=True)
        samples = read_webdataset(source)
        first = next(samples)  # an index without samples is not written
        dtype = first["input_ids"].dtype
        return write_mds(out, chain([first], samples), dtype=dtype)


def _add_tars(directory: Path, manifest: Manifest, overwrite: bool) -> Iterator[str]:
    final = directory / TARS
    with writing(final), staged_directory(final, overwrite=overwrite) as staging:
        for split, mixtures in manifest.splits.items():
            for mixture in mixtures:
                part = Path(split, mixture)
                count = write_webdataset(staging / part, read_mds(directory / part))
                yield f"{TARS}/{part}: {count} samples"
    kept = {name: digest for name, digest in manifest.files.items() if Path(name).parts[0] != TARS}
    made = {
        file.relative_to(directory).as_posix(): file_sha256(file)
        for file in sorted(final.rglob(INDEX))
    }
    with writing(directory / MANIFEST_FILE):
        replace(manifest, files=kept | made).write(directory)


def _restore_shards(directory: Path, manifest: Manifest) -> Iterator[str]:
    shard_bytes = read_provenance(directory).options.get("shard_bytes", DEFAULT_SHARD_BYTES)
    dtype = np.dtype(np.uint16 if manifest.vocab_size <= 1 << 16 else np.uint32)
    parts = [Path(split, name) for split, names in manifest.splits.items() for name in names]
    for part in parts:  # what a kill has left
        shutil.rmtree(_partial(directory / part), ignore_errors=True)
    missing = [part for part in parts if not _whole(directory / part)]
    if not missing:
        raise FileExistsError(f"{directory}: its shards are there already, and undamaged")
    for part in missing:  # before long work
        check_webdataset(directory / TARS / part, hashes=True)
        table = directory / part / TABLE_FILE
        expected = manifest.files.get(f"{part.as_posix()}/{TABLE_FILE}")
        if not table.is_file() or file_sha256(table) != expected:
            raise ValueError(f"{table}: missing or damaged; it cannot be made from the tars")
    for part in missing:
        final = directory / part
        partial = _partial(final)
        try:
            with writing(final):
                samples = read_webdataset(directory / TARS / part)
                count = write_mds(partial, samples, dtype=dtype, shard_bytes=shard_bytes)
            if file_sha256(partial / INDEX) != manifest.files.get(f"{part.as_posix()}/{INDEX}"):
                raise ShardError(
                    f"{directory / TARS / part}: its samples are not those of {MANIFEST_FILE}"
                )
            # File by file, the index last: stopped at any moment it can be done again, which it
            # could not be without the task table that stays here.
            for file in sorted(partial.iterdir(), key=lambda file: file.name == INDEX):
                file.replace(final / file.name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        yield f"{part}: {count} samples"


def _partial(final: Path) -> Path:
    return final.with_name(f".{final.name}.converted")


def _whole(directory: Path) -> bool:
    try:
        check_mds(directory, hashes=True)
    except ShardError:
        return False
    return True
