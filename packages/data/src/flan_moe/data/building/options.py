"""How to build a data directory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any, get_args

from flan_moe.data.json_types import LARGEST
from flan_moe.data.storage.shards import DEFAULT_SHARD_BYTES
from flan_moe.data.tokenization.tokenizer import TokenizerModel

LARGEST_COUNT = 2**32 - 1  # of ids, of tokens in a row, and of bytes in an MDS shard
MAX_WORKERS = 256

# How the build is run, and which tokenizer by name: not what comes out.
_RUN_OPTIONS = ("webdataset", "overwrite", "restart", "workers", "tokenizer")


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How to build; see ``flan-moe-data build --help``.

    Attributes:
        name: Of the data set and its suite.
        source: Where the data come from, for people.
        seed: Recorded; the task sources already carry it.
        vocab_size: Of the tokenizer to train.
        tokenizer_model: Kind of tokenizer to train, as of `train_tokenizer`.
        tokenizer: Name or path of a tokenizer to use instead of training one.
        max_input_tokens: Few-shot prompts drop exemplars until they fit.
        max_target_tokens: Recorded as the budget of the targets.
        shard_bytes: Largest size of an MDS shard.
        webdataset: Write the same samples as tars as well.
        overwrite: Replace an existing data directory.
        workers: Processes that make tasks and shards; 0 does everything in this one. The bytes are
            the same.
        restart: Discard what a stopped build of the same directory left, instead of going on.
    """

    name: str
    source: str
    seed: int = 0
    vocab_size: int = 2048
    tokenizer_model: TokenizerModel = "bpe"
    tokenizer: str | None = None
    max_input_tokens: int = 256
    max_target_tokens: int = 48
    shard_bytes: int = DEFAULT_SHARD_BYTES
    webdataset: bool = False
    overwrite: bool = False
    workers: int = 0
    restart: bool = False

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: One is out of range; names it.
        """
        if not 0 <= self.seed <= LARGEST:
            raise ValueError(f"seed is {self.seed}; expected 0 to 2**63 - 1")
        if self.tokenizer_model not in get_args(TokenizerModel):
            raise ValueError(
                f"tokenizer_model is {self.tokenizer_model!r}; expected one of "
                f"{', '.join(get_args(TokenizerModel))}"
            )
        if self.tokenizer_model == "unigram" and find_spec("sentencepiece") is None:
            raise ValueError(
                "tokenizer_model is 'unigram', which needs the sentencepiece package: "
                "pip install sentencepiece"
            )
        if not 0 <= self.workers <= MAX_WORKERS:
            raise ValueError(f"workers is {self.workers}; expected 0 to {MAX_WORKERS}")
        for key in ("vocab_size", "max_input_tokens", "max_target_tokens", "shard_bytes"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}; expected a positive number")
            if getattr(self, key) > LARGEST_COUNT:
                raise ValueError(
                    f"{key} is {getattr(self, key)}; expected at most {LARGEST_COUNT:,}"
                )

    def deciding(self) -> dict[str, Any]:
        """The options that decide the content, as JSON values."""
        return {key: value for key, value in asdict(self).items() if key not in _RUN_OPTIONS}
