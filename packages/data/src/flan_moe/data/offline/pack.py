"""Draws a mixture, packs its examples over large windows, and writes the rows."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from flan_moe.data.mixing.spec import MixtureSpec
from flan_moe.data.offline.draw import MixtureDraw
from flan_moe.data.offline.manifest import PackedManifest, is_packed
from flan_moe.data.offline.rows import ROWS_FOLDER, make_row, row_writer, write_segments
from flan_moe.data.packing import WINDOW, Overlong, choose_target_budget, pack_windows
from flan_moe.data.storage.manifest import MANIFEST_FILE, file_sha256
from flan_moe.data.storage.shards import DEFAULT_SHARD_BYTES
from flan_moe.data.storage.staging import check_output_directory, staged_directory
from flan_moe.data.streaming.mixture_plan import LARGEST_EPOCH
from flan_moe.data.whole_number import check_whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

REPORT_EVERY = 100_000  # rows


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """How to pack.

    Attributes:
        samples: Examples in an epoch; None as of `flan_moe.data.build_mixture_dataset`.
        epochs: How many to draw. What an epoch has drawn comes again only after the rest of its
            task has been drawn, as in training.
        weights: Stored mixture, then its weight.
        mixture: A specification instead.
        split: Of the data directory.
        seed: Of the draw.
        max_input_tokens: Encoder tokens of a row; None takes those of the data directory.
        max_target_tokens: Decoder tokens of a row, or ``"auto"`` for the budget that
            `choose_target_budget` recommends for what is drawn.
        overlong: What becomes of an example longer than a row; see `pack_examples`.
        window: Examples that are packed at once.
        shard_bytes: Largest size of a shard.
        overwrite: Whether to replace an older directory.
    """

    samples: int | None = None
    epochs: int = 1
    weights: Mapping[str, float] | None = None
    mixture: MixtureSpec | None = None
    split: str = "train"
    seed: int = 0
    max_input_tokens: int | None = None
    max_target_tokens: int | Literal["auto"] | None = None
    overlong: Overlong = "truncate"
    window: int = WINDOW
    shard_bytes: int = DEFAULT_SHARD_BYTES
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: One is out of range; names it.
        """
        for key in ("samples", "epochs", "max_input_tokens", "max_target_tokens", "window"):
            value = getattr(self, key)
            optional = key == "samples" or key.startswith("max_")
            if not (optional and value is None) and (key, value) != ("max_target_tokens", "auto"):
                check_whole(key, value)
        if self.overlong not in get_args(Overlong):
            raise ValueError(f"overlong is {self.overlong!r}; expected one of {get_args(Overlong)}")
        check_whole("seed", self.seed, least=0)
        if self.seed >= 2**32:
            raise ValueError(f"seed is {self.seed!r}; expected 0 to {2**32 - 1}")


def pack_directory(
    directory: str | Path,
    out: str | Path,
    options: PackOptions,
    *,
    report: Callable[[str], None] = print,
) -> PackedManifest:
    """Pack a mixture of a data directory into a new directory.

    The samples of each epoch are those that `dataloader` draws with the same arguments. Equal
    arguments and data give equal bytes. ``out`` appears when it is complete.

    Args:
        directory: Built by ``flan-moe-data``.
        out: The packed directory to make.
        options: How.
        report: Receives lines about the progress.

    Returns:
        The manifest of the packed directory.

    Raises:
        ValueError: The directory is damaged, an argument does not fit, or an example is overlong
            under ``"error"``; nothing was written then.
        FileExistsError: ``out`` exists and may not be replaced.
    """
    directory = Path(directory)
    check_output_directory(out, overwrite=options.overwrite, marker=MANIFEST_FILE)
    if (Path(out) / MANIFEST_FILE).exists() and not is_packed(out):
        raise FileExistsError(f"{out} holds no packed rows, so it is not replaced")
    draw = MixtureDraw.open(
        directory,
        split=options.split,
        weights=options.weights,
        mixture=options.mixture,
        epoch_size=options.samples,
    )
    total = options.epochs * draw.plan.epoch_size
    if total > LARGEST_EPOCH:
        raise ValueError(
            f"epochs is {options.epochs}, which makes {total} examples; expected at most "
            f"{LARGEST_EPOCH}: their order is held in memory"
        )
    epochs = [draw.epoch(epoch, options.seed) for epoch in range(options.epochs)]
    budget = _budget(draw, epochs, options, report)
    _check_overlong(draw, epochs, budget, options.overlong)
    try:
        manifest = _write(directory, out, draw, epochs, budget, options, report)
    except OSError as error:
        if error.filename is not None:
            raise
        # A full disk names no file.
        raise OSError(error.errno, error.strerror or str(error), str(out)) from error
    for line in manifest.lines():
        report(line)
    return manifest


def _write(
    directory: Path,
    out: str | Path,
    draw: MixtureDraw,
    epochs: list[NDArray[np.int64]],
    budget: tuple[int, int],
    options: PackOptions,
    report: Callable[[str], None],
) -> PackedManifest:
    # Every id is below the size of the vocabulary, whatever type the shards have.
    dtype = np.dtype(np.uint16 if draw.manifest.vocab_size <= 1 << 16 else np.uint32)
    with staged_directory(out, overwrite=options.overwrite, marker=MANIFEST_FILE) as staging:
        folder = staging / ROWS_FOLDER
        segments: list[int] = []
        with row_writer(folder, dtype=dtype, shard_bytes=options.shard_bytes) as writer:
            for row in _rows(draw, epochs, budget, options):
                examples = [_cut(draw, number, budget) for number in row.tolist()]
                writer.write(make_row(examples))
                segments.append(len(examples))
                if len(segments) % REPORT_EVERY == 0:
                    report(f"{len(segments):,} rows with {sum(segments):,} examples")
        write_segments(folder, segments)
        shutil.copytree(directory / "tokenizer", staging / "tokenizer")
        manifest = _manifest(directory, staging, draw, epochs, budget, len(segments), options)
        manifest.write(staging)
    return manifest


def _budget(
    draw: MixtureDraw,
    epochs: list[NDArray[np.int64]],
    options: PackOptions,
    report: Callable[[str], None],
) -> tuple[int, int]:
    inputs = options.max_input_tokens or draw.manifest.max_input_tokens
    if options.max_target_tokens != "auto":
        return inputs, options.max_target_tokens or draw.manifest.max_target_tokens
    chosen = choose_target_budget(draw.lengths[np.concatenate(epochs)], inputs)
    report(
        f"max_target_tokens is {chosen.max_target_tokens}: expected to be {chosen.fill:.1%} full; "
        f"{chosen.overlong:.2%} of the examples are longer than a row"
    )
    return inputs, chosen.max_target_tokens


def _check_overlong(
    draw: MixtureDraw,
    epochs: list[NDArray[np.int64]],
    budget: tuple[int, int],
    overlong: Overlong,
) -> None:
    """Before anything is written."""
    for numbers_N in epochs:
        length_N2 = draw.lengths[numbers_N]
        long_N = (length_N2 > budget).any(1)
        if overlong == "drop" and long_N.all():
            raise ValueError(
                f"no example is left of {len(long_N)}: all exceed {budget[0]} input or {budget[1]} "
                "target tokens"
            )
        if overlong == "error" and long_N.any():
            first = int(long_N.argmax())
            name = draw.manifest.tasks[draw.tasks[numbers_N[first]]]["name"]
            raise ValueError(
                f"{long_N.sum():,} of {len(long_N):,} examples are longer than a row of "
                f"{budget[0]} input and {budget[1]} target tokens, one of task {name!r} with "
                f"{length_N2[first, 0]} and {length_N2[first, 1]} (overlong='error')"
            )


def _rows(
    draw: MixtureDraw,
    epochs: list[NDArray[np.int64]],
    budget: tuple[int, int],
    options: PackOptions,
) -> Iterator[NDArray[np.int64]]:
    """The numbers of the samples of each row, epoch by epoch."""
    for numbers_N in epochs:
        length_N2 = draw.lengths[numbers_N]
        if options.overlong == "drop":
            fits_N = (length_N2 <= budget).all(1)
            numbers_N, length_N2 = numbers_N[fits_N], length_N2[fits_N]
        for row in pack_windows(np.minimum(length_N2, budget), budget, window=options.window):
            yield numbers_N[row]


def _cut(
    draw: MixtureDraw, number: int, budget: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, int]:
    """What a row has of an example, as `pack_examples` cuts it, and the id of its task."""
    sample = draw[number]
    return sample["input_ids"][-budget[0] :], sample["labels"][: budget[1]], sample["task"]


def _manifest(
    directory: Path,
    staging: Path,
    draw: MixtureDraw,
    epochs: list[NDArray[np.int64]],
    budget: tuple[int, int],
    rows: int,
    options: PackOptions,
) -> PackedManifest:
    numbers_N = np.concatenate(epochs)
    length_N2 = draw.lengths[numbers_N]
    long_N2 = length_N2 > budget
    kept_N2 = np.minimum(length_N2, budget)
    dropped_N = long_N2.any(1) & (options.overlong == "drop")
    kept_N2[dropped_N] = 0
    long_N2[dropped_N] = False
    columns = {
        "drawn": np.ones(len(numbers_N), np.int64),
        "packed": ~dropped_N,
        "dropped": dropped_N,
        "truncated_inputs": long_N2[:, 0],
        "truncated_targets": long_N2[:, 1],
        "input_tokens": kept_N2[:, 0],
        "target_tokens": kept_N2[:, 1],
        "lost_input_tokens": length_N2[:, 0] - kept_N2[:, 0],
        "lost_target_tokens": length_N2[:, 1] - kept_N2[:, 1],
    }
    known = draw.manifest.tasks
    sums = {
        key: np.bincount(draw.tasks[numbers_N], weights=value, minlength=len(known))
        for key, value in columns.items()
    }
    tasks = tuple(
        {key: task[key] for key in ("id", "name", "mixture")}
        | {key: int(value[task["id"]]) for key, value in sums.items()}
        for task in known
        if sums["drawn"][task["id"]]
    )
    files = sorted(
        file.relative_to(staging).as_posix()
        for file in staging.rglob("*")
        if file.is_file() and file.suffix != ".mds" and not file.name.startswith(".")
    )
    source = draw.manifest
    return PackedManifest(
        name=source.name,
        source_sha256=file_sha256(directory / MANIFEST_FILE),
        split=options.split,
        mixture=draw.plan.description,
        seed=options.seed,
        epochs=options.epochs,
        window=options.window,
        overlong=options.overlong,
        vocab_size=source.vocab_size,
        tokenizer_sha256=source.tokenizer_sha256,
        pad_token_id=source.pad_token_id,
        eos_token_id=source.eos_token_id,
        max_input_tokens=budget[0],
        max_target_tokens=budget[1],
        rows=rows,
        tasks=tasks,
        files={name: file_sha256(staging / name) for name in files},
    )
