"""Tokens as the pieces of text that they stand for, and text that is safe to show."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flan_moe.model.inspect.routes import Token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Control, format, surrogate, private and unassigned characters, and the two separators that are no
# spaces: a terminal may obey them, and they can turn around or hide the text beside them.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def token_pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[Token, ...]:
    """The piece of text of each token.

    A piece is what decoding gains when the token follows its left neighbour, so that it keeps the
    space before a word whatever the tokenizer's way to write it. A token that is not whole
    characters (a byte of one) is given by its name in the vocabulary, and so is a special one. An
    id that the tokenizer lacks, because the model's vocabulary was rounded up, is ``<32100>``.

    Args:
        tokenizer: of the ids.
        ids: token ids.
    """
    special = set(tokenizer.all_special_ids)
    names = tokenizer.convert_ids_to_tokens(list(ids))
    tokens = []
    for position, (token_id, name) in enumerate(zip(ids, names, strict=True)):
        before = [ids[position - 1]] if position and ids[position - 1] not in special else []
        if name is None:
            tokens.append(Token(id=token_id, piece=f"<{token_id}>"))
            continue
        piece = name
        if token_id not in special:
            left, both = _decode(tokenizer, before), _decode(tokenizer, [*before, token_id])
            gained = both[len(left) :] if both.startswith(left) else ""
            if gained and "\N{REPLACEMENT CHARACTER}" not in gained:
                piece = gained
        tokens.append(Token(id=token_id, piece=piece))
    return tuple(tokens)


def visible(text: str) -> str:
    """Text in which every character can be seen and none commands.

    Line ends and tabs become arrows, other characters without a face their code point in angle
    brackets.
    """
    named = {"\n": "↵", "\t": "⇥"}
    return "".join(
        named.get(character) or f"<{ord(character):04X}>"
        if unicodedata.category(character) in _UNSAFE
        else character
        for character in text
    )


def split_space(piece: str) -> tuple[str, str]:
    """The spaces before a piece, and the rest; a piece of nothing but spaces is drawn instead."""
    word = piece.lstrip(" ")
    if not word:
        return "", "␣" * len(piece)
    return piece[: len(piece) - len(word)], word


def short_list(experts: Sequence[int]) -> str:
    """Numbers of experts for small print, ``3+1``; of more than two the first two, ``3+1+``."""
    return "+".join(map(str, experts[:2])) + ("+" if len(experts) > 2 else "")


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    if not ids:
        return ""
    return tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
