"""One attempt at a build: what an earlier one has finished is used, the rest is made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flan_moe.data.building.completion import complete_directory, split_totals
from flan_moe.data.building.disk import DiskFullError, free_bytes, mebibytes, writing
from flan_moe.data.building.merge import merge_pieces, merge_tars
from flan_moe.data.building.options import BuildOptions
from flan_moe.data.building.pieces import SPLITS, Piece, read_piece, write_piece
from flan_moe.data.building.plan import (
    PLAN_FILE,
    InputFile,
    Plan,
    hash_inputs,
    make_plan,
    refuse_changed_inputs,
    write_json,
)
from flan_moe.data.building.vocabulary import (
    given_fingerprint,
    keep_tokenizer,
    texts_file,
    train_on_texts,
    write_texts,
)
from flan_moe.data.building.workers import WorkerDiedError, run_jobs
from flan_moe.data.progress import Progress
from flan_moe.data.sources.task_source import TaskSource
from flan_moe.data.storage.manifest import Manifest
from flan_moe.data.storage.staging import Workplace, clear
from flan_moe.data.tokenization.tokenizer import TextEncoder, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INPUTS_FILE = "inputs.json"


class BuildAttempt:
    """Makes ``place.result`` out of sources.

    Args:
        place: Where an earlier attempt may have left its work.
        sources: The tasks, in the order of their ids.
        options: How to build.
        progress: Told about it.

    Attributes:
        planned: Whether the place holds work of this plan, and of no other.
    """

    def __init__(
        self,
        place: Workplace,
        sources: Sequence[TaskSource],
        options: BuildOptions,
        progress: Progress,
    ) -> None:
        self._place = place
        self._sources = sources
        self._options = options
        self._progress = progress
        self._pieces = place.path / "pieces"
        self._texts = place.path / "texts"
        self._tokenizer = place.path / "tokenizer"
        self.planned = False

    def run(self) -> Manifest:
        """All steps; see `build_data_directory` for what they raise."""
        given = None
        if self._options.tokenizer is not None:
            given = load_tokenizer(self._options.tokenizer)
        inputs = self._settle_plan(given)
        tokenizer = self._make_tokenizer(given)
        encoder = TextEncoder.of(tokenizer)
        pieces = self._make_pieces(encoder)
        refuse_changed_inputs(inputs)
        if not any(piece.splits["train"].count for piece in pieces):
            raise ValueError("every task is held out; expected at least one to train on")
        by_mixture: dict[str, list[Piece]] = {}
        for source, piece in zip(self._sources, pieces, strict=True):
            by_mixture.setdefault(source.mixture, []).append(piece)
        self._merge(by_mixture, encoder)
        return complete_directory(
            self._place.result,
            by_mixture,
            self._sources,
            self._options,
            tokenizer_files=self._tokenizer,
            tokenizer=tokenizer,
            inputs=inputs,
            line=self._progress.line,
        )

    def _settle_plan(self, given: PreTrainedTokenizerBase | None) -> dict[Path, InputFile]:
        """Take up the work of an earlier attempt with the same plan, or begin with this one."""
        workers = self._options.workers
        kept = self._place.path / _INPUTS_FILE
        known = {}
        if kept.is_file():
            stored = json.loads(kept.read_text(encoding="utf-8"))
            for path, record in stored.items():
                record["stamp"] = tuple(record["stamp"])
                known[path] = InputFile(**record)
        inputs = hash_inputs(self._sources, threads=workers, known=known)
        options = self._options.deciding()
        options["tokenizer"] = None if given is None else given_fingerprint(given)
        if given is not None:
            del options["vocab_size"], options["tokenizer_model"]  # the tokenizer has its own
        plan = make_plan(self._sources, options, inputs)
        stopped = (self._place.path / PLAN_FILE).is_file() and not self._options.restart
        if stopped and plan.continues(self._place.path):
            self._progress.line(f"going on with the build that was stopped in {self._place.path}")
        else:
            clear(self._place)
            self._begin(plan, inputs)
        self._place.keep = plan.resumable
        self.planned = True
        return inputs

    def _begin(self, plan: Plan, inputs: dict[Path, InputFile]) -> None:
        records = {
            str(path.absolute()): file.record() | {"stamp": file.stamp}
            for path, file in inputs.items()
        }
        write_json(self._place.path / _INPUTS_FILE, records)
        plan.write(self._place.path)

    def _make_tokenizer(self, given: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
        line = self._progress.line
        if not self._tokenizer.is_dir():
            if given is not None:
                keep_tokenizer(given, self._tokenizer)
                line(f"tokenizer: {self._options.tokenizer}")
            else:
                line(f"tokenizer: training {self._options.vocab_size} ids on the training texts")
                self._train_tokenizer()
        return load_tokenizer(self._tokenizer)

    def _train_tokenizer(self) -> None:
        with writing(self._texts):
            self._texts.mkdir(exist_ok=True)
        numbers = range(len(self._sources))
        missing = [n for n in numbers if not texts_file(self._texts, n).is_file()]

        def write(number: int) -> None:
            source = self._sources[number]
            write_texts(self._texts, number, source, self._options.max_input_tokens)

        finished = len(numbers) - len(missing)
        with self._progress.steps("texts", len(numbers), done=finished) as advance:
            self._run(write, missing, lambda number, _: advance(self._sources[number].name))
        train_on_texts(
            *(self._tokenizer, self._texts, len(numbers)),
            *(self._options.vocab_size, self._options.tokenizer_model),
        )
        shutil.rmtree(self._texts)

    def _make_pieces(self, encoder: TextEncoder) -> list[Piece]:
        numbers = range(len(self._sources))
        found = {}
        for number in numbers:
            piece = read_piece(self._pieces, number)
            if piece is not None and self._is_usable(piece):
                found[number] = piece
        missing = self._largest_first([number for number in numbers if number not in found])

        def write(number: int) -> None:
            source = self._sources[number]
            write_piece(self._pieces, number, source, encoder, self._options.max_input_tokens)

        def done(number: int, _: None) -> None:
            piece = read_piece(self._pieces, number)
            if piece is None:
                raise OSError(f"{self._pieces}: the piece of task {number} is gone")
            found[number] = piece
            counts = ", ".join(f"{piece.splits[split].count} {split}" for split in SPLITS)
            advance(f"{self._sources[number].name}: {counts}")

        with self._progress.steps("tasks", len(numbers), done=len(found)) as advance:
            try:
                self._run(write, missing, done)
            except DiskFullError as error:
                size = sum(_bytes(found.values(), split) for split in SPLITS)
                guess = size / len(found) * (len(numbers) - len(found)) if found else 0
                more = f"; about {mebibytes(guess + size)} more are needed" if found else ""
                raise DiskFullError(
                    f"{error}; {len(found)} of {len(numbers)} tasks are finished{more}"
                ) from error
        return [found[number] for number in numbers]

    def _is_usable(self, piece: Piece) -> bool:
        """Whether the samples of a piece are there, or in shards by now."""
        mixture = piece.suite.mixture
        return all(
            piece.holds(split) or (self._place.result / split / mixture).is_dir()
            for split in SPLITS
        )

    def _largest_first(self, numbers: list[int]) -> list[int]:
        """With several workers, the order in which none is left alone with a large task."""
        if self._options.workers < 2:
            return numbers

        def size(number: int) -> int:
            return sum(file.stat().st_size for file in self._sources[number].inputs)

        return sorted(numbers, key=size, reverse=True)

    def _merge(self, by_mixture: dict[str, list[Piece]], encoder: TextEncoder) -> None:
        result = self._place.result
        if not self._options.webdataset:
            shutil.rmtree(result / "webdataset", ignore_errors=True)
        units = [
            (mixture, split)
            for mixture, pieces in by_mixture.items()
            for split in SPLITS
            if any(piece.splits[split].count for piece in pieces)
        ]

        def finished(mixture: str, split: str) -> bool:
            tars = (
                not self._options.webdataset or (result / "webdataset" / split / mixture).is_dir()
            )
            return (result / split / mixture).is_dir() and tars

        waiting = [number for number, unit in enumerate(units) if not finished(*unit)]
        self._refuse_without_room([units[number] for number in waiting], by_mixture)

        def merge(number: int) -> None:
            mixture, split = units[number]
            directory = result / split / mixture
            if not directory.is_dir():
                directory.parent.mkdir(parents=True, exist_ok=True)
                merge_pieces(
                    directory,
                    by_mixture[mixture],
                    split,
                    mixture=mixture,
                    dtype=encoder.dtype,
                    shard_bytes=self._options.shard_bytes,
                )
            if self._options.webdataset:
                merge_tars(result / "webdataset" / split / mixture, directory)

        def done(number: int, _: None) -> None:
            mixture, split = units[number]
            for piece in by_mixture[mixture]:  # their room is needed for the next ones
                (piece.directory / split).unlink(missing_ok=True)
            totals = split_totals(by_mixture[mixture], split)
            self._progress.line(
                f"{split}/{mixture}: {totals['examples']} examples, {totals['input_tokens']} "
                f"input and {totals['target_tokens']} target tokens"
            )

        for number in range(len(units)):
            if number not in waiting:
                done(number, None)
        run_jobs(merge, waiting, workers=self._options.workers, done=done)

    def _refuse_without_room(
        self, units: list[tuple[str, str]], by_mixture: dict[str, list[Piece]]
    ) -> None:
        """Refuse what cannot succeed: shards stand beside their pieces until they are complete."""
        needed = max((_bytes(by_mixture[mixture], split) for mixture, split in units), default=0)
        found = free_bytes(self._place.path)
        if found < needed:
            raise DiskFullError(
                f"{self._place.path}: the shards need {mebibytes(needed)} more, "
                f"{mebibytes(found)} are free; all tasks are finished"
            )

    def _run(self, job: Any, numbers: Sequence[int], done: Any) -> None:
        """`run_jobs` for jobs that are tasks, named in errors."""
        try:
            run_jobs(job, numbers, workers=self._options.workers, done=done)
        except WorkerDiedError as error:
            name = self._sources[error.number].name
            raise WorkerDiedError(
                error.number, f"task {name!r}: {error}; the same command goes on from here"
            ) from None


def _bytes(pieces: Any, split: str) -> int:
    return sum(piece.splits[split].bytes for piece in pieces)
