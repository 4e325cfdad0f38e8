"""The tokenizer of a build: the one given, or one trained on texts of every task."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from flan_moe.data.building.disk import writing
from flan_moe.data.building.plan import write_json
from flan_moe.data.sources.task_source import TaskSource
from flan_moe.data.tokenization.tokenizer import (
    TokenizerModel,
    copy_tokenizer,
    train_tokenizer,
    write_tokenizer_files,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLE = 1000  # training examples per task that a new tokenizer learns from
CHARACTERS_PER_TOKEN = 4  # guess of a prompt's length before there is a tokenizer


def given_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """The sha256 of what a loaded tokenizer does, wherever it came from."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def keep_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Copy a given tokenizer; the directory appears when it is complete."""
    partial = directory.with_name(directory.name + ".partial")
    with writing(directory):
        copy_tokenizer(tokenizer, partial)
    partial.rename(directory)


def texts_file(texts: Path, number: int) -> Path:
    """Where the texts of a task are."""
    return texts / f"{number:06d}.json"


def write_texts(texts: Path, number: int, source: TaskSource, max_input_tokens: int) -> None:
    """Keep the texts of one task that a tokenizer learns from.

    Args:
        texts: The folder of all of them; it exists.
        number: The task's id.
        source: The task.
        max_input_tokens: Few-shot prompts drop exemplars until they are about so short.
    """

    def fits(prompt: str) -> bool:
        return len(prompt) <= CHARACTERS_PER_TOKEN * max_input_tokens

    examples = islice(source.open(fits).train, SAMPLE)
    pairs = [(example.prompt, example.target) for example in examples]
    write_json(texts_file(texts, number), pairs)


def train_on_texts(
    directory: Path, texts: Path, count: int, vocab_size: int, model: TokenizerModel
) -> None:
    """Train a tokenizer on the texts of all tasks, in their order.

    Args:
        directory: Where to; it appears when it is complete.
        texts: Filled by `write_texts`.
        count: Number of tasks.
        vocab_size: Of the tokenizer.
        model: Its kind.
    """

    def stored(numbers: Sequence[int]) -> Iterator[str]:
        for number in numbers:
            for pair in json.loads(texts_file(texts, number).read_text(encoding="utf-8")):
                yield from pair

    trained = train_tokenizer(stored(range(count)), vocab_size, model=model)
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with writing(directory):
        partial.mkdir()
        write_tokenizer_files(trained, partial)
    partial.rename(directory)
