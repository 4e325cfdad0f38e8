"""One answered question, and the log file that keeps the answered questions of one cell.

A cell is a task with a number of shots in one mode. Its log is a jsonl file: a header line with the
key of the run, then a line per question, appended as questions finish. A rerun with the same key
goes on where the log ends; a log of another model, task content or decoding is refused, never
reused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from flan_moe.eval.files import write_text
from flan_moe.eval.requests import Loglikelihood, Response
from flan_moe.eval.strict_json import Checked, parse_json

LOG_FORMAT = "flan-moe-eval-samples"
LOG_VERSION = 2


class SampleLogError(ValueError):
    """A sample log that cannot be read or belongs to another run; the message names the file."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One question, what the model answered and how it was judged.

    Attributes:
        id: The item's id.
        prompt: What the model read.
        exemplars: Exemplars in the prompt.
        excess_tokens: Tokens cut from the prompt's start because it did not fit.
        targets: The right answers.
        options: Candidate answers, if any.
        output: Generated text; None when options were scored.
        output_tokens: Length of ``output``, where the model can count.
        log_probabilities: One per option; None when text was generated.
        token_counts: Tokens per option; None when text was generated.
        answer: The answer found in the output, or the likeliest option; None if there is none.
        how: Where the answer was found, see :mod:`flan_moe.eval.extract`, or "likeliest".
        correct: Whether the answer is right.
        secondary: Further verdicts by name.
    """

    id: str
    prompt: str
    exemplars: int
    excess_tokens: int
    targets: tuple[str, ...]
    options: tuple[str, ...] | None
    output: str | None
    output_tokens: int | None
    log_probabilities: tuple[float, ...] | None
    token_counts: tuple[int, ...] | None
    answer: str | None
    how: str
    correct: bool
    secondary: Mapping[str, bool]

    def response(self) -> Response:
        """The model's part of the sample."""
        if self.output is not None:
            return self.output
        return Loglikelihood(self.log_probabilities or (), self.token_counts or ())


def log_key(
    *,
    model: str | None,
    task: str,
    content: str,
    shots: int,
    mode: str,
    method: str,
    decoding: Mapping[str, int],
) -> dict[str, Any]:
    """What decides the answers of a cell: two runs with equal keys may share a log."""
    return {
        "model": model,
        "task": task,
        "content": content,
        "shots": shots,
        "mode": mode,
        "method": method,
        "max_new_tokens": decoding.get(f"{mode}_tokens") if method == "generate" else None,
    }


def log_path(out_dir: Path, *, task: str, shots: int, mode: str) -> Path:
    """Where the log of a cell is."""
    return out_dir / "samples" / f"{task}.{shots}-shot.{mode}.jsonl"


class SampleLog:
    """The log of one cell, open for appending.

    Attributes:
        path: The file.
        samples: What was in it when it was opened, by id.
    """

    def __init__(self, path: Path, key: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Open or create the log.

        Args:
            path: The file.
            key: What decides the answers: model, task content, setting, decoding.
            overwrite: Start again if the file has another key.

        Raises:
            SampleLogError: A line is corrupt, or the key differs and ``overwrite`` is false.
        """
        self.path = path
        self.samples: dict[str, Sample] = {}
        self._header = _line({"format": LOG_FORMAT, "version": LOG_VERSION, "key": key})
        if path.is_file():
            whole = _cut_torn_line(path)
            found = _read_header(path) if whole else None
            difference = _difference(found, key) if found is not None else None
            if found is not None and difference is None:
                self.samples = {sample.id: sample for sample in _read_samples(path)}
                return
            if difference is not None and not overwrite:
                raise SampleLogError(
                    f"{path}: the log of another run ({difference}); choose another folder, or "
                    "overwrite it"
                )
        write_text(path, self._header)

    def append(self, samples: Iterable[Sample]) -> None:
        """Add finished samples, in one write that reaches the disk before this returns."""
        text = "".join(_line(asdict(sample)) for sample in samples)
        with self.path.open("ab") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())

    def finish(self, samples: Sequence[Sample]) -> None:
        """Rewrite the log in the order of the task; samples beyond those given stay behind them."""
        ids = {sample.id for sample in samples}
        rest = [sample for sample in self.samples.values() if sample.id not in ids]
        lines = [_line(asdict(sample)) for sample in [*samples, *rest]]
        write_text(self.path, "".join([self._header, *lines]))


def read_samples(path: Path, key: Mapping[str, Any]) -> list[Sample]:
    """All samples of the log with a key, in its order.

    Raises:
        FileNotFoundError: There is no such file.
        SampleLogError: The log has another key, or a line is corrupt; the message names file and
            line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a log of samples")
    difference = _difference(_read_header(path), key)
    if difference is not None:
        raise SampleLogError(
            f"{path}: the log of another run than the results ({difference}); expected the log "
            "that they were computed from"
        )
    return _read_samples(path)


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def _cut_torn_line(path: Path) -> bool:
    """Remove a last line that a killed process did not finish; False if nothing is left."""
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        with path.open("r+b") as file:
            file.truncate(end)
    return end > 0


def _lines(path: Path) -> list[bytes]:
    lines = path.read_bytes().split(b"\n")
    if lines[-1]:
        raise SampleLogError(f"{path}:{len(lines)}: the last line is not finished")
    return lines[:-1]


def _read_header(path: Path) -> Mapping[str, Any]:
    lines = _lines(path)
    where = f"{path}:1"
    try:
        header = Checked.of(parse_json(lines[0] if lines else b"", where), where)
        header.literal("format", LOG_FORMAT)
        header.literal("version", LOG_VERSION)
        return header.mapping("key").record
    except ValueError as error:
        raise SampleLogError(str(error)) from None


def _read_samples(path: Path) -> list[Sample]:
    try:
        return [
            _read_sample(Checked.of(parse_json(line, f"{path}:{number}"), f"{path}:{number}"))
            for number, line in enumerate(_lines(path), start=1)
            if number > 1
        ]
    except ValueError as error:
        raise SampleLogError(str(error)) from None


def _read_sample(record: Checked) -> Sample:
    record.only_keys(*(field.name for field in fields(Sample)))
    secondary = record.mapping("secondary")
    sample = Sample(
        id=record.text("id"),
        prompt=record.text("prompt", empty=True),
        exemplars=record.integer("exemplars"),
        excess_tokens=record.integer("excess_tokens"),
        targets=record.texts("targets"),
        options=record.optional("options", record.texts),
        output=record.optional("output", lambda key: record.text(key, empty=True)),
        output_tokens=record.optional("output_tokens", record.integer),
        log_probabilities=record.optional("log_probabilities", record.numbers),
        token_counts=record.optional("token_counts", record.integers),
        answer=record.optional("answer", lambda key: record.text(key, empty=True)),
        how=record.text("how"),
        correct=record.boolean("correct"),
        secondary={key: secondary.boolean(key) for key in secondary.record},
    )
    scored = (sample.log_probabilities, sample.token_counts, sample.options)
    if sample.output is None and (
        None in scored or len({len(values) for values in scored if values is not None}) != 1
    ):
        raise ValueError(
            f"{record.where}: neither an output nor one log-probability and token count per option"
        )
    return sample


def _difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    for key in [*expected, *(key for key in found if key not in expected)]:
        if found.get(key) != expected.get(key):
            return f"{key}: {found.get(key)!r} there, {expected.get(key)!r} here"
    return None
