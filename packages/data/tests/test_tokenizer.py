"""Tokenizers: exact round trips, fixed special ids, Hugging Face format, clear refusals."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_moe.data.mini_flan import TASK_FAMILIES
from flan_moe.data.tokenization.tokenizer import (
    TextEncoder,
    load_tokenizer,
    save_tokenizer,
    tokenizer_fingerprint,
    train_tokenizer,
)
from flan_moe.data.tokenization.unigram import train_sentencepiece

TEXTS = [
    family.prompt(family.instance(i, seed=0, split="train"), i)
    for family in TASK_FAMILIES
    for i in range(20)
]
TRAINED = train_tokenizer(TEXTS, 1000)
ENCODER = TextEncoder(TRAINED, 1)
UNIGRAM = train_tokenizer(TEXTS, 700, model="unigram")
SPECIALS = ("<pad>", "</s>", "<unk>")
ALL = {"bpe": TRAINED, "unigram": UNIGRAM, "byt5": load_tokenizer("byt5").backend_tokenizer}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "saved"
    save_tokenizer(TRAINED, path)
    return path


def round_trip(text, tokenizer=TRAINED):
    ids = TextEncoder(tokenizer, 1).encode([text])[0]
    assert ids[-1] == 1
    return tokenizer.decode(ids.tolist(), skip_special_tokens=True)


@pytest.mark.parametrize("name", ALL)
@given(st.text())
@settings(max_examples=150, deadline=None)
def test_every_text_comes_back_exactly(name, text):
    if name == "unigram":
        text = text.replace("\u2581", "")  # how SentencePiece writes a space
    assert round_trip(text, ALL[name]) == text


@pytest.mark.parametrize(
    "text", ["", " ", "\n", " \n  a\n\n b ", "{x}[y]<z>", "a\tb\r\nc", "▁é💩\x00", *TEXTS[::40]]
)
def test_awkward_texts_come_back_exactly(text):
    assert round_trip(text) == text


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("text", ["</s>", "a <pad> b", "<unk></s>", "<extra_id_0>", "<0x41>"])
def test_a_text_that_spells_a_special_token_is_text(text, name):
    ids = TextEncoder(ALL[name], 1).encode([text])[0]
    special = {0, 1, 2, *range(259, 384)} if name == "byt5" else {0, 1, 2}
    assert special.isdisjoint(ids[:-1].tolist())
    assert round_trip(text, ALL[name]) == text


def test_byt5_has_the_ids_of_transformers(tmp_path):
    from transformers import AutoTokenizer, ByT5Tokenizer

    ours, theirs = load_tokenizer("google/byt5-small"), ByT5Tokenizer()
    assert len(ours) == len(theirs) == 384
    for text in ("", "Is it?\n", "é 日本 💩 \x00\x7f\u00ad", "".join(map(chr, range(1, 600)))):
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    specials = ["<pad>", "</s>", "<unk>", "<extra_id_0>", "<extra_id_124>"]
    assert ours.convert_tokens_to_ids(specials) == theirs.convert_tokens_to_ids(specials)
    assert (ours.pad_token_id, ours.eos_token_id) == (0, 1)
    ours.save_pretrained(tmp_path)
    assert (
        AutoTokenizer.from_pretrained(tmp_path)("Is it?")["input_ids"]
        == ours("Is it?")["input_ids"]
    )


def test_unigram_ids_are_those_of_sentencepiece():
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(
        model_proto=train_sentencepiece(TEXTS, 700, SPECIALS)
    )
    encoder = TextEncoder(UNIGRAM, 1)
    assert UNIGRAM.get_vocab_size() == pieces.get_piece_size()
    for text in [*TEXTS[::7], "naïve 日本 💩", "two  blanks", " first", "12 345"]:
        assert encoder.encode([text])[0].tolist() == [*pieces.encode(text), 1], text


def test_training_a_unigram_model_again_gives_the_same():
    assert train_tokenizer(TEXTS, 700, model="unigram").to_str() == UNIGRAM.to_str()


def test_a_sentencepiece_file_is_converted(tmp_path):
    import sentencepiece

    data = train_sentencepiece(TEXTS, 700, SPECIALS)
    (tmp_path / "spiece.model").write_bytes(data)
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    tokenizer = load_tokenizer(tmp_path)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=data)
    for text in TEXTS[::17]:
        if "\n" not in text:
            assert tokenizer(text)["input_ids"] == [*pieces.encode(text), 1]


def test_digits_are_split_and_words_do_not_depend_on_their_place():
    def tokens(text):
        return [TRAINED.id_to_token(int(i)) for i in ENCODER.encode([text])[0]]

    assert tokens("1234") == ["Ġ1", "2", "3", "4", "</s>"]
    assert tokens("red") == ["Ġred", "</s>"]
    assert tokens("red\nred - red") == ["Ġred", "Ċ", "Ġred", "Ġ-", "Ġred", "</s>"]


def test_hugging_face_reads_it_with_the_contracts_ids(directory):
    tokenizer = load_tokenizer(directory)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    text = "Input: red  duck\n\nOutput: {1} </s>"
    ids = tokenizer(text)["input_ids"]
    assert ids == TextEncoder.of(tokenizer).encode([text])[0].tolist()
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert TextEncoder.of(tokenizer).length(text) == len(ids)


def test_training_and_saving_are_deterministic(directory, tmp_path):
    save_tokenizer(train_tokenizer(list(TEXTS), 1000), tmp_path / "again")
    for file in directory.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name
    assert tokenizer_fingerprint(directory) == tokenizer_fingerprint(tmp_path / "again")
    other = train_tokenizer(TEXTS[:100], 600)
    save_tokenizer(other, tmp_path / "other")
    assert tokenizer_fingerprint(directory) != tokenizer_fingerprint(tmp_path / "other")


def test_ids_are_stored_in_the_smallest_type():
    assert ENCODER.encode(["a"])[0].dtype == np.uint16
    ENCODER_32 = TextEncoder(TRAINED, 1)
    ENCODER_32.vocab_size = 70_000
    assert ENCODER_32.encode(["a"])[0].dtype == np.uint32


def test_encoding_leaves_the_tokenizer_as_it_was(directory):
    tokenizer = load_tokenizer(directory)
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(4)
    assert len(TextEncoder.of(tokenizer).encode(["one two three four five six"])[0]) > 4
    assert backend.truncation["max_length"] == 4


def test_refusals(tmp_path, directory):
    with pytest.raises(ValueError, match="vocab_size is 100; expected at least 259"):
        train_tokenizer(TEXTS, 100)
    with pytest.raises(FileExistsError, match="exists already"):
        save_tokenizer(TRAINED, directory)
    with pytest.raises(ValueError, match=r"no tokenizer\.json or spiece\.model there"):
        load_tokenizer(tmp_path / "nothing")
    with pytest.raises(ValueError, match="expected a tokenizer in Hugging Face format"):
        tokenizer_fingerprint(tmp_path)


def test_a_damaged_tokenizer_is_refused_by_name(tmp_path, directory):
    broken = tmp_path / "broken"
    broken.mkdir()
    text = (directory / "tokenizer.json").read_text()
    (broken / "tokenizer.json").write_text(text[: len(text) // 2])
    (broken / "tokenizer_config.json").write_text((directory / "tokenizer_config.json").read_text())
    with pytest.raises(ValueError, match="broken"):
        load_tokenizer(broken)


def test_a_tokenizer_without_eos_is_refused(tmp_path, directory):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "tokenizer.json").write_bytes((directory / "tokenizer.json").read_bytes())
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"}
    (bare / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="has no eos token"):
        load_tokenizer(bare)
