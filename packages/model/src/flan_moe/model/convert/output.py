"""A checkpoint directory that appears when it is complete, and not before."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from flan_moe.model.convert.assemble import Target
from flan_moe.model.convert.safetensors_file import write_file

Progress = Callable[[int, int], None]
"""Is called with the bytes written so far and the bytes to write."""

DEFAULT_SHARD_BYTES = 5 * 10**9

# What may accompany weights: tokenizers and the settings of generation.
COPIED_FILES = (
    "added_tokens.json",
    "generation_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
)


def check_new(path: Path) -> None:
    """Refuse an output directory that cannot be made.

    Raises:
        FileExistsError: if something of that name exists.
        FileNotFoundError: if the directory to make it in does not.
    """
    if os.path.lexists(path):
        raise FileExistsError(f"{path}: exists; expected the name of a new directory")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path.absolute().parent}: no such directory")


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Make a directory under a temporary name beside ``path``; rename it if the block succeeds.

    If the block raises, everything is removed; if the process is killed, what stays has a name that
    starts with a dot and ends in ``.partial``.

    Raises:
        FileExistsError, FileNotFoundError: see `check_new`.
    """
    check_new(path)
    partial = path.absolute().parent / f".{path.absolute().name}.{secrets.token_hex(4)}.partial"
    partial.mkdir()
    try:
        yield partial
        check_new(path)
        partial.rename(path)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            # A full disk, for one: the error of a write does not say where.
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_weights(
    directory: Path,
    targets: Sequence[Target],
    *,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Progress | None = None,
) -> int:
    """Write ``model.safetensors``, or shards and their index, one part of a tensor after another.

    Args:
        directory: to write into.
        targets: the tensors.
        shard_bytes: most bytes of tensors in a file, unless one tensor is larger.
        progress: see `Progress`.

    Returns:
        Bytes of all tensors.

    Raises:
        ValueError: if ``shard_bytes`` is not positive.
        OSError: if the disk lacks the room, before anything is written.
    """
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes={shard_bytes}: expected at least 1")
    total = sum(target.num_bytes for target in targets)
    free = shutil.disk_usage(directory).free
    if total > free:
        raise OSError(f"{directory.parent}: {total} bytes to write, but only {free} are free")
    shards = _shards(targets, shard_bytes)
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = ["model.safetensors"]
    meter = _Meter(total, progress)
    for name, shard in zip(names, shards, strict=True):
        # The widest elements first, so that every tensor is aligned.
        shard.sort(key=lambda target: -target.dtype.itemsize)
        write_file(
            directory / name,
            ((t.name, t.shape, t.dtype, meter.counted(t.parts())) for t in shard),
        )
    if len(shards) > 1:
        files = {t.name: name for name, shard in zip(names, shards, strict=True) for t in shard}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}
        write_json(directory / "model.safetensors.index.json", index)
    return total


def copy_companions(source: Path, directory: Path) -> list[str]:
    """Copy the `COPIED_FILES` that a checkpoint has; returns their names."""
    names = [name for name in COPIED_FILES if (source / name).is_file()]
    for name in names:
        shutil.copyfile(source / name, directory / name)
    return names


def write_json(path: Path, value: Any) -> None:
    """Write JSON as transformers formats it."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class _Meter:
    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total = total
        self.progress = progress
        self.done = 0

    def counted(self, parts: Iterator[Tensor]) -> Iterator[Tensor]:
        for part in parts:
            yield part
            self.done += part.numel() * part.element_size()
            if self.progress is not None:
                self.progress(self.done, self.total)


def _shards(targets: Sequence[Target], shard_bytes: int) -> list[list[Target]]:
    shards: list[list[Target]] = [[]]
    size = 0
    for target in targets:
        if shards[-1] and size + target.num_bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(target)
        size += target.num_bytes
    return shards
