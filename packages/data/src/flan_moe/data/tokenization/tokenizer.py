"""Tokenizers: train one on the data, load any Hugging Face one, fingerprint, encode.

A trained tokenizer is byte-level BPE, or a unigram model that falls back to bytes, so every text
comes back exactly from its ids: newlines, braces and bytes never seen in training included. Three
choices of BPE help small models. Each digit is a
token of its own. A word has the same token at the start of a text, after a newline and after a
space, because a space is put in front of every line before encoding and taken away after decoding.
Text that spells a special token, such as ``</s>``, is encoded as text.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from flan_moe.data.storage.staging import staged_directory
from flan_moe.data.tokenization.byte_tokenizer import byte_tokenizer
from flan_moe.data.tokenization.unigram import train_unigram

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
SPECIAL_TOKENS = (PAD, EOS, UNK)  # ids 0, 1, 2
SMALLEST_VOCAB = len(SPECIAL_TOKENS) + 256
SENTENCEPIECE_FILE = "spiece.model"
_BYT5 = re.compile(r"byt5|google/byt5-(small|base|large|xl|xxl)")
TokenizerModel = Literal["bpe", "unigram"]


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, *, model: TokenizerModel = "bpe"
) -> Tokenizer:
    """Train a tokenizer that gives every text back exactly.

    Args:
        texts: Training texts; the same texts in the same order give the same tokenizer.
        vocab_size: Number of ids, special tokens and the 256 bytes included. Fewer come out when
            the texts hold too few different words.
        model: ``"bpe"`` on bytes, or SentencePiece's ``"unigram"`` with byte fallback, which needs
            the ``sentencepiece`` package.

    Returns:
        The tokenizer; pad, eos and unk have ids 0, 1 and 2. It appends eos when asked to add
        special tokens.

    Raises:
        ValueError: ``vocab_size`` cannot hold the special tokens and the bytes, there is no such
            model, or it cannot be trained.
    """
    if vocab_size < SMALLEST_VOCAB:
        raise ValueError(f"vocab_size is {vocab_size}; expected at least {SMALLEST_VOCAB}")
    if model not in get_args(TokenizerModel):
        raise ValueError(f"tokenizer model is {model!r}; expected {get_args(TokenizerModel)}")
    from tokenizers import processors

    if model == "bpe":
        tokenizer = _train_bpe(texts, vocab_size)
    else:
        tokenizer = train_unigram(texts, vocab_size, SPECIAL_TOKENS)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, 1)]
    )
    return tokenizer


def _train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        trainers,
    )

    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace("\n", "\n "), normalizers.Prepend(" ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\p{N}|\n"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Replace("\n ", "\n"), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: str | Path, *, overwrite: bool = False) -> None:
    """Write a trained tokenizer in Hugging Face format, under its name only when complete.

    Args:
        tokenizer: What `train_tokenizer` returned.
        directory: Where to; `load_tokenizer` and ``AutoTokenizer`` read it.
        overwrite: Replace the directory if it exists.

    Raises:
        FileExistsError: The directory exists and ``overwrite`` is not set.
    """
    with staged_directory(directory, overwrite=overwrite) as staging:
        write_tokenizer_files(tokenizer, staging)


def write_tokenizer_files(tokenizer: Tokenizer, directory: Path) -> None:
    """Write the three files of the Hugging Face format into an existing directory."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": EOS,
        "unk_token": UNK,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        "padding_side": "right",
        "truncation_side": "left",
        "model_max_length": int(1e9),
    }
    special = {"pad_token": PAD, "eos_token": EOS, "unk_token": UNK}
    (directory / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    for name, content in (("tokenizer_config", config), ("special_tokens_map", special)):
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        (directory / f"{name}.json").write_text(text, encoding="utf-8")


def load_tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a directory or by its Hugging Face name.

    Args:
        name_or_path: A directory with ``tokenizer.json`` or SentencePiece's ``spiece.model`` (which
            needs the ``sentencepiece`` package to be converted), a model name, or ``byt5`` (also by
            the names of its models), which needs no files. No code from the repository is run.

    Returns:
        A fast tokenizer that has a pad and an eos token.

    Raises:
        ValueError: It cannot be loaded, is not a fast tokenizer, or lacks a pad or an eos token.
    """
    from transformers import AutoTokenizer

    name = os.fspath(name_or_path)
    if _looks_like_path(name):
        if not any(Path(name, file).is_file() for file in ("tokenizer.json", SENTENCEPIECE_FILE)):
            raise ValueError(f"tokenizer {name!r}: no tokenizer.json or {SENTENCEPIECE_FILE} there")
    elif _BYT5.fullmatch(name):
        return byte_tokenizer()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # transformers, hub and tokenizers raise many unrelated types
        raise ValueError(
            f"tokenizer {name!r}: expected a directory with tokenizer.json or a Hugging Face "
            f"model name that is cached or reachable; loading it failed with "
            f"{type(error).__name__}: {error}"
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(f"tokenizer {name!r}: expected a fast tokenizer (tokenizer.json)")
    for role in ("pad", "eos"):
        if getattr(tokenizer, f"{role}_token_id") is None:
            raise ValueError(f"tokenizer {name!r}: has no {role} token; expected one")
    return tokenizer


def _looks_like_path(name: str) -> bool:
    return Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") > 1


def tokenizer_fingerprint(directory: str | Path) -> str:
    """The sha256 of ``tokenizer.json``, by which a data set names its tokenizer.

    Raises:
        ValueError: There is no such file in the directory.
    """
    file = Path(directory) / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"{file}: no such file; expected a tokenizer in Hugging Face format")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def copy_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Save a loaded tokenizer into a data set, so that the data set is complete by itself."""
    shutil.rmtree(directory, ignore_errors=True)
    tokenizer.save_pretrained(directory)


class TextEncoder:
    """Texts to token ids that end in eos, the way shards hold them.

    Args:
        tokenizer: The ``tokenizers`` object; it is copied, so its settings stay as they are.
        eos_token_id: Appended to every text.
    """

    def __init__(self, tokenizer: Tokenizer, eos_token_id: int) -> None:
        from tokenizers import Tokenizer as Backend

        self._backend = Backend.from_str(tokenizer.to_str())
        self._backend.no_padding()
        self._backend.no_truncation()
        self._backend.encode_special_tokens = True  # "</s>" in a text is text
        self.eos_token_id = eos_token_id
        self.vocab_size = self._backend.get_vocab_size(with_added_tokens=True)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> TextEncoder:
        """The encoder of a loaded Hugging Face tokenizer."""
        return cls(tokenizer.backend_tokenizer, tokenizer.eos_token_id)

    @property
    def dtype(self) -> np.dtype:
        """The smallest unsigned type that holds every id."""
        return np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, eos at the end, as arrays of `dtype`."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array([*e.ids, self.eos_token_id], dtype=self.dtype) for e in encodings]

    def length(self, text: str) -> int:
        """Number of ids of a text, eos included."""
        return len(self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids) + 1
