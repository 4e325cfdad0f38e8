"""SentencePiece unigram tokenizers: trained by the ``sentencepiece`` library, used as fast ones.

The trainer of ``tokenizers`` gives another model on every run; sentencepiece's does not. Texts come
back exactly from their ids: nothing is normalised, and characters without a piece become bytes.
Only U+2581, by which SentencePiece writes a space, comes back as one.
"""

from __future__ import annotations

import io
import string
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BLANK = "\u2581"  # how SentencePiece writes a space
LONGEST_TEXT = 1 << 20  # bytes; the trainer skips longer ones
_NEVER = -1e6  # score of pieces that no text may become


def train_unigram(texts: Iterable[str], vocab_size: int, specials: tuple[str, ...]) -> Tokenizer:
    """Train a unigram model with byte fallback; see `train_sentencepiece`."""
    data = train_sentencepiece(texts, vocab_size, specials)
    import sentencepiece

    return _fast(sentencepiece.SentencePieceProcessor(model_proto=data))


def train_sentencepiece(texts: Iterable[str], vocab_size: int, specials: tuple[str, ...]) -> bytes:
    """Train a unigram model with byte fallback, as the bytes of a ``.model`` file.

    Args:
        texts: Training texts.
        vocab_size: Number of ids at most, special tokens and bytes included.
        specials: Pad, eos and unk, in the order of their ids.

    Raises:
        ValueError: ``sentencepiece`` is not installed, or it cannot train on these texts.
    """
    try:
        import sentencepiece
    except ModuleNotFoundError:
        raise ValueError(
            "a unigram tokenizer needs the sentencepiece package: pip install sentencepiece"
        ) from None
    pad, eos, unk = specials
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(text for text in texts if text),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="unigram",
            **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
            **{"pad_piece": pad, "eos_piece": eos, "unk_piece": unk},
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            split_digits=True,
            user_defined_symbols=["\n"],
            # So that text that spells "</s>" or "<0x41>" has other pieces to be made of.
            required_chars=string.digits + string.ascii_letters + string.punctuation,
            hard_vocab_limit=False,
            max_sentence_length=LONGEST_TEXT,
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise ValueError(f"sentencepiece cannot train {vocab_size} ids: {error}") from error
    return model.getvalue()


def _fast(pieces: object) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary = [
        (
            pieces.id_to_piece(number),
            _NEVER if _is_apart(pieces, number) else pieces.get_score(number),
        )
        for number in range(pieces.get_piece_size())
    ]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=pieces.unk_id(), byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(" "), normalizers.Replace(" ", BLANK)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(BLANK, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def _is_apart(pieces: object, number: int) -> bool:
    """Whether a piece stands for something else than its letters: a byte, the end of a text."""
    return pieces.is_byte(number) or pieces.is_control(number) or pieces.is_unknown(number)
