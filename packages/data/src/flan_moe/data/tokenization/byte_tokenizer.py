"""The tokenizer of ByT5: a token for every byte, nothing learnt, the same for all its sizes.

Built here, since no file of it is published: ids of Xue et al. 2022 (pad 0, eos 1, unk 2, byte b is
3 + b, then 125 sentinels), in the Hugging Face format that data directories hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SENTINELS = 125


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, 384 ids; text that spells a special token is bytes, as all text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    vocabulary = specials | {char: 3 + byte for byte, char in enumerate(_byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    sentinels = [f"<extra_id_{number}>" for number in range(SENTINELS)]
    for token in (*specials, *sentinels):
        tokenizer.add_special_tokens([AddedToken(token, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=sentinels,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
        model_max_length=int(1e9),
    )


def _byte_characters() -> list[str]:
    """The character that stands for each byte in byte-level models (Radford et al. 2019).

    Printable characters of Latin-1 stand for themselves, the others for those from 256 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
