"""Tokenised samples in MDS shards and in WebDataset tars: writing, reading, verifying.

A sample is a dict with ``input_ids`` and ``labels`` (unsigned integer arrays that end in eos),
``task`` (id in the data set's task table) and ``template`` (provenance). Both formats hold the same
samples in the same order, and the same input gives the same bytes.

MDS (mosaicml-streaming) is for training. Tars are for interchange: one ``.json`` member per sample,
beside an ``index.json`` with the size, hash and number of samples of each tar.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flan_moe.data.json_types import check_types
from flan_moe.data.storage.staging import staged_directory

if TYPE_CHECKING:
    from streaming import MDSWriter

HASH = "sha256"
INDEX = "index.json"
DEFAULT_SHARD_BYTES = 1 << 26
TAR_FORMAT = "flan-moe-webdataset"
TAR_VERSION = 1

COLUMNS = ("input_ids", "labels", "task", "template")
TOKEN_TYPES = ("uint16", "uint32")

Sample = dict[str, Any]

_KEY = re.compile(r"[0-9]{1,18}")


class ShardError(ValueError):
    """A shard or its index is missing, truncated or damaged; the message names the file."""


def mds_writer(
    directory: str | Path,
    *,
    dtype: np.dtype,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    encoded: bool = False,
) -> MDSWriter:
    """A mosaicml-streaming writer with this package's columns and hashes.

    Args:
        directory: Must not exist; shards appear in it as they fill, the index at the end.
        dtype: Of the token ids, uint16 or uint32.
        shard_bytes: Largest size of a shard.
        encoded: Whether ``write`` takes what `encode_sample` returns in place of samples.
    """
    from streaming import MDSWriter

    class EncodedWriter(MDSWriter):
        def encode_sample(self, sample: bytes) -> bytes:
            return sample

    kind = EncodedWriter if encoded else MDSWriter
    columns = _columns(np.dtype(dtype).name)
    return kind(out=str(directory), columns=columns, hashes=[HASH], size_limit=shard_bytes)


def encode_sample(sample: Sample) -> bytes:
    """A sample as it stands in an MDS shard of `mds_writer`, whatever shard that will be.

    The same bytes as from the writer, without its looking up how each value is encoded.
    """
    input_ids, labels = _encode_ids(sample["input_ids"]), _encode_ids(sample["labels"])
    template = sample["template"].encode()
    # The sizes of the columns whose size the type does not tell come first.
    sizes = struct.pack("<3I", len(input_ids), len(labels), len(template))
    return b"".join((sizes, input_ids, labels, struct.pack("<q", sample["task"]), template))


def _encode_ids(ids: np.ndarray) -> bytes:
    """MDS's form of an array of known type: number and size of the dimensions, then the values."""
    width = 0 if len(ids) < 1 << 8 else 1 if len(ids) < 1 << 16 else 2
    return bytes([1 << 2 | width]) + len(ids).to_bytes(1 << width, "little") + ids.tobytes()


def _columns(dtype: str) -> dict[str, str]:
    ids = f"ndarray:{dtype}"
    return dict(zip(COLUMNS, (ids, ids, "int", "str"), strict=True))


def write_mds(
    directory: str | Path,
    samples: Iterable[Sample],
    *,
    dtype: np.dtype,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> int:
    """Write samples as MDS shards with hashes, under the final name only when complete.

    Args:
        directory: Where to; must not exist before.
        samples: In the order they are to have.
        dtype: Of the token ids, uint16 or uint32.
        shard_bytes: Largest size of a shard.

    Returns:
        The number of samples.

    Raises:
        FileExistsError: The directory exists.
        ValueError: There are no samples.
    """
    count = 0
    with staged_directory(directory) as staging:
        with mds_writer(staging / "shards", dtype=dtype, shard_bytes=shard_bytes) as writer:
            for sample in samples:
                writer.write(sample)
                count += 1
        if not count:
            raise ValueError(f"{directory}: no samples to write")
        for file in (staging / "shards").iterdir():
            file.rename(staging / file.name)
        (staging / "shards").rmdir()
    return count


def read_mds(directory: str | Path, *, start: int = 0) -> Iterator[Sample]:
    """The samples of one MDS directory in stored order, without any shared state.

    Args:
        directory: One MDS directory.
        start: Number of the first sample.

    Raises:
        ShardError: A shard is missing, has not the size that the index states, or is damaged.
    """
    from streaming.base.format import reader_from_json

    directory = Path(directory)
    index = check_mds(directory)
    for entry in index["shards"]:
        shard = reader_from_json(str(directory), "", entry)
        shard.validate(allow_unsafe_types=False)
        for number in range(min(start, len(shard)), len(shard)):
            try:
                yield shard[number]
            except (IndexError, ValueError, KeyError, TypeError) as error:
                file = directory / entry["raw_data"]["basename"]
                raise ShardError(f"{file}: sample {number} cannot be decoded: {error}") from error
        start = max(start - len(shard), 0)


def check_mds(
    directory: str | Path,
    *,
    hashes: bool = False,
    complete: bool = True,
    layouts: Sequence[Mapping[str, str]] | None = None,
) -> dict[str, Any]:
    """Compare the shards of a directory with their index.

    Args:
        directory: One MDS directory.
        hashes: Read every byte and compare hashes as well; otherwise existence and size only.
        complete: Whether every shard must be there; in a cache of a remote directory some are not.
        layouts: Column, then its encoding, of each kind of shard that is allowed; None for samples.

    Returns:
        The parsed index.

    Raises:
        ShardError: The index or a shard is missing, truncated or damaged.
    """
    directory = Path(directory)
    index = _read_index(directory)
    layouts = [_columns(name) for name in TOKEN_TYPES] if layouts is None else layouts
    if (
        index.get("version") != 2
        or not isinstance(index.get("shards"), list)
        or not index["shards"]
    ):
        raise ShardError(f"{directory / INDEX}: not an MDS index (version 2 with shards)")
    for number, entry in enumerate(index["shards"]):
        try:
            _check_entry(entry, layouts)
        except (TypeError, ValueError) as error:
            raise ShardError(f"{directory / INDEX}: shards[{number}]: {error}") from error
        info = entry["raw_data"]
        name = info["basename"]
        if complete or not name_is_plain(name) or (directory / name).exists():
            _check_file(directory, name, info["bytes"], info["hashes"], hashes)
    return index


def write_webdataset(
    directory: str | Path, samples: Iterable[Sample], *, samples_per_shard: int = 10_000
) -> int:
    """Write samples as WebDataset tars.

    Args:
        directory: Where to; it appears when complete and must not exist before.
        samples: In the order they are to have, for example from `read_mds`.
        samples_per_shard: How many go into one tar.

    Returns:
        The number of samples.

    Raises:
        FileExistsError: The directory exists.
        ValueError: There are no samples.
    """
    shards: list[dict[str, Any]] = []
    count = 0
    with staged_directory(directory) as staging:
        iterator = iter(samples)
        while chunk := list(_take(iterator, samples_per_shard)):
            name = f"shard-{len(shards):05d}.tar"
            _write_tar(staging / name, chunk, first=count)
            data = (staging / name).read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            shards.append(
                {"name": name, "bytes": len(data), "sha256": digest, "samples": len(chunk)}
            )
            count += len(chunk)
        if not count:
            raise ValueError(f"{directory}: no samples to write")
        index = {"format": TAR_FORMAT, "version": TAR_VERSION, "shards": shards}
        (staging / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return count


def read_webdataset(directory: str | Path) -> Iterator[Sample]:
    """The samples of a directory of tars, in stored order, through a webdataset pipeline.

    Nothing is extracted to disk and only json is decoded, so member names and contents of an
    untrusted tar cannot do harm.

    Raises:
        ShardError: A tar is missing, truncated or damaged, or holds something else.
    """
    import webdataset

    directory = Path(directory).absolute()
    for shard in check_webdataset(directory)["shards"]:
        file = directory / shard["name"]
        # A list keeps webdataset from expanding braces or reading a scheme out of the path.
        pipeline = webdataset.DataPipeline(
            webdataset.SimpleShardList([f"file:{file}"]), webdataset.tarfile_to_samples()
        )
        count = 0
        try:
            for member in pipeline:
                tar_member_number(file, member["__key__"])
                yield decode_tar_sample(member["json"])
                count += 1
        except ShardError:
            raise
        except (tarfile.TarError, KeyError, ValueError, EOFError, OSError) as error:
            raise ShardError(f"{file}: sample {count} cannot be read: {error}") from error
        if count != shard["samples"]:
            raise ShardError(f"{file}: holds {count} samples; the index says {shard['samples']}")


def check_webdataset(
    directory: str | Path, *, hashes: bool = False, complete: bool = True
) -> dict[str, Any]:
    """Compare the tars of a directory with their index, as `check_mds` does for shards."""
    directory = Path(directory)
    index = _read_index(directory)
    if index.get("format") != TAR_FORMAT or index.get("version") != TAR_VERSION:
        raise ShardError(f"{directory / INDEX}: not an index of {TAR_FORMAT} version {TAR_VERSION}")
    hints = {"name": str, "bytes": int, "sha256": str, "samples": int}
    try:
        check_types(index, {"shards": tuple[Mapping[str, Any], ...]})
        for number, shard in enumerate(index["shards"]):
            check_types(shard, hints, f"shards[{number}].")
    except TypeError as error:
        raise ShardError(f"{directory / INDEX}: damaged index: {error}") from error
    for shard in index["shards"]:
        name = shard["name"]
        if complete or not name_is_plain(name) or (directory / name).exists():
            _check_file(directory, name, shard["bytes"], {HASH: shard["sha256"]}, hashes)
    return index


def name_is_plain(name: str) -> bool:
    """Whether a shard's name stays inside its directory."""
    return Path(name).name == name


def _take(iterator: Iterator[Sample], count: int) -> Iterator[Sample]:
    for _, sample in zip(range(count), iterator, strict=False):
        yield sample


def _write_tar(file: Path, samples: list[Sample], *, first: int) -> None:
    # USTAR and fixed metadata: no extra header per member, and the same bytes every time.
    with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, sample in enumerate(samples, start=first):
            record = {
                key: value.tolist() if isinstance(value, np.ndarray) else value
                for key, value in sample.items()
            }
            record["dtype"] = sample["input_ids"].dtype.name
            data = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
            member = tarfile.TarInfo(f"{number:09d}.json")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def tar_member_number(file: Path, key: str) -> int:
    """The number of the sample that a member of a tar holds, from its name without ".json".

    Raises:
        ShardError: It has another name than this package gives, such as a path leading elsewhere.
    """
    if _KEY.fullmatch(key) is None:
        raise ShardError(f"{file}: member {key!r}; expected names like 000000012.json")
    return int(key)


def decode_tar_sample(data: bytes) -> Sample:
    """The sample in a member of a tar.

    Raises:
        ValueError: It is not one.
        KeyError: It lacks a part.
    """
    record = json.loads(data)
    name = record.pop("dtype")
    if name not in TOKEN_TYPES:
        raise ValueError(f"dtype is {name!r}; expected uint16 or uint32")
    for key in ("input_ids", "labels"):
        record[key] = np.array(record[key], dtype=name)
    return record


def _read_index(directory: Path) -> dict[str, Any]:
    file = directory / INDEX
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ShardError(f"{file}: no such file; expected the index of the shards") from None
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{file}: damaged index: {error}") from error
    if not isinstance(index, dict):
        raise ShardError(f"{file}: damaged index: not a JSON object")
    return index


def _check_entry(entry: Any, layouts: Sequence[Mapping[str, str]]) -> None:
    """Refuse an index entry that `mds_writer` does not write.

    Streaming takes the names, types and sizes of the columns from here and trusts them.
    """
    if not isinstance(entry, dict):
        raise TypeError(f"{entry!r}; expected an object")
    expected = {
        "format": ("mds",),
        "version": (2,),
        "compression": (None,),
        "zip_data": (None,),
        "column_names": (list(layouts[0]),),
        "column_encodings": tuple(list(layout.values()) for layout in layouts),
        "column_sizes": ([8 if kind == "int" else None for kind in layouts[0].values()],),
    }
    for key, values in expected.items():
        if key not in entry or entry[key] not in values:
            words = " or ".join(map(repr, values))
            raise ValueError(f"{key} is {entry.get(key)!r}; expected {words}")
    hints = {"samples": int, "size_limit": int, "hashes": tuple[str, ...]}
    check_types(entry, hints | {"raw_data": Mapping[str, Any]})
    hints = {"basename": str, "bytes": int, "hashes": Mapping[str, str]}
    check_types(entry["raw_data"], hints, "raw_data.")


def _check_file(
    directory: Path, name: str, size: int, digests: dict[str, str], hashes: bool
) -> None:
    file = directory / name
    if not name_is_plain(name):
        raise ShardError(f"{directory / INDEX}: shard name {name!r} leaves the directory")
    if not file.is_file():
        raise ShardError(f"{file}: missing shard; {INDEX} lists it with {size} bytes")
    found = file.stat().st_size
    if found != size:
        raise ShardError(f"{file}: {found} bytes; {INDEX} says {size} (truncated or replaced?)")
    if not hashes:
        return
    if HASH not in digests:
        raise ShardError(f"{directory / INDEX}: no {HASH} for {name}; expected one to verify with")
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, HASH).hexdigest()
    if digest != digests[HASH]:
        raise ShardError(f"{file}: damaged shard; its {HASH} is not the one in {INDEX}")
