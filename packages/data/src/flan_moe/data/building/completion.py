"""What completes a data directory once its shards are there: suite, provenance, manifest."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flan_moe.data.__about__ import __version__
from flan_moe.data.building.disk import writing
from flan_moe.data.building.evaluation import Questions, unshown_questions
from flan_moe.data.building.lengths import total
from flan_moe.data.building.options import BuildOptions
from flan_moe.data.building.pieces import SPLITS, Piece
from flan_moe.data.building.plan import InputFile
from flan_moe.data.sources.task_source import TaskSource
from flan_moe.data.storage.manifest import Manifest, file_sha256
from flan_moe.data.storage.provenance import PROVENANCE_FILE, Provenance
from flan_moe.data.storage.shards import INDEX
from flan_moe.data.storage.task_table import TABLE_FILE
from flan_moe.data.suite import write_suite
from flan_moe.data.tokenization.tokenizer import TextEncoder, tokenizer_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ByMixture = Mapping[str, Sequence[Piece]]


def complete_directory(
    result: Path,
    by_mixture: ByMixture,
    sources: Sequence[TaskSource],
    options: BuildOptions,
    *,
    tokenizer_files: Path,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Mapping[Path, InputFile],
    line: Callable[[str], None],
) -> Manifest:
    """Write what is small; it is made anew by every attempt.

    Args:
        result: Holds the shards and tables.
        by_mixture: The pieces of every mixture, in the order of the suite.
        sources: All tasks, in the order of their ids.
        options: How to build.
        tokenizer_files: The folder of the tokenizer; copied.
        tokenizer: The same, loaded.
        inputs: Raw files with their hashes.
        line: Told what came out.

    Returns:
        The manifest, written last.

    Raises:
        DiskFullError: There is no room.
    """
    pieces = [piece for group in by_mixture.values() for piece in group]
    questions = unshown_questions(pieces, line)
    dropped = sum((Counter(piece.dropped) for piece in pieces), questions.removed)
    for reason, number in sorted(dropped.items()):
        line(f"left out: {number} ({reason})")
    with writing(result):
        for name in ("eval", "tokenizer"):
            shutil.rmtree(result / name, ignore_errors=True)
        shutil.copytree(tokenizer_files, result / "tokenizer")
        if questions.tasks:
            tasks, source = questions.tasks, options.source
            write_suite(result / "eval", name=options.name, source=source, tasks=tasks)
        _provenance(sources, options, result / "tokenizer", inputs).write(result)
        manifest = _manifest(result, by_mixture, tokenizer, options, questions, dropped)
        manifest.write(result)
    asked = sum(len(task.items) for task in questions.tasks)
    line(
        f"eval: {len(questions.tasks)} tasks, {asked} questions"
        if asked
        else "eval: no questions, so no suite"
    )
    return manifest


def split_totals(pieces: Sequence[Piece], split: str) -> dict[str, int]:
    """Numbers of examples and tokens of one split of one mixture."""
    found = [piece.splits[split] for piece in pieces]
    return {
        "examples": sum(one.count for one in found),
        "input_tokens": sum(total(one.input_lengths) for one in found),
        "target_tokens": sum(total(one.target_lengths) for one in found),
    }


def _provenance(
    sources: Sequence[TaskSource],
    options: BuildOptions,
    tokenizer: Path,
    inputs: Mapping[Path, InputFile],
) -> Provenance:
    return Provenance(
        package=__version__,
        options=options.deciding(),
        tokenizer={
            "origin": "trained" if options.tokenizer is None else "given",
            "sha256": tokenizer_fingerprint(tokenizer),
        },
        tasks=tuple(
            {
                "name": source.name,
                "inputs": [inputs[file].record() for file in source.inputs],
                "provenance": dict(source.provenance),
            }
            for source in sources
        ),
    )


def _manifest(
    result: Path,
    by_mixture: ByMixture,
    tokenizer: PreTrainedTokenizerBase,
    options: BuildOptions,
    questions: Questions,
    dropped: Counter[str],
) -> Manifest:
    files = [*result.glob("tokenizer/*"), *result.glob("eval/*"), result / PROVENANCE_FILE]
    files += [*result.rglob(INDEX), *result.rglob(TABLE_FILE)]
    tasks = [
        {
            "id": piece.number,
            "name": piece.suite.name,
            "mixture": mixture,
            "group": piece.suite.group,
            **{split: piece.splits[split].count for split in SPLITS},
            **questions.counts[piece.suite.name],
        }
        for mixture, pieces in by_mixture.items()
        for piece in pieces
    ]
    splits = {
        split: {
            mixture: totals
            for mixture, pieces in by_mixture.items()
            if (totals := split_totals(pieces, split))["examples"]
        }
        for split in SPLITS
    }
    return Manifest(
        name=options.name,
        vocab_size=TextEncoder.of(tokenizer).vocab_size,
        tokenizer_sha256=tokenizer_fingerprint(result / "tokenizer"),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        max_input_tokens=options.max_input_tokens,
        max_target_tokens=options.max_target_tokens,
        seed=options.seed,
        splits={split: mixtures for split, mixtures in splits.items() if mixtures},
        tasks=tuple(sorted(tasks, key=lambda task: task["id"])),
        dropped=dict(sorted(dropped.items())),
        files={file.relative_to(result).as_posix(): file_sha256(file) for file in sorted(files)},
    )
