"""Tokenizers: exact round trips, fixed special ids, Hugging Face format, clear refusals."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_moe.data.mini_flan import TASK_FAMILIES
from flan_moe.data.tokenizer import (
    TextEncoder,
    load_tokenizer,
    save_tokenizer,
    tokenizer_fingerprint,
    train_tokenizer,
)

TEXTS = [
    family.prompt(family.instance(i, seed=0, split="train"), i)
    for family in TASK_FAMILIES
    for i in range(20)
]
TRAINED = train_tokenizer(TEXTS, 1000)
ENCODER = TextEncoder(TRAINED, 1)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "saved"
    save_tokenizer(TRAINED, path)
    return path


def round_trip(text):
    ids = ENCODER.encode([text])[0]
    assert ids[-1] == 1
    return TRAINED.decode(ids.tolist(), skip_special_tokens=True)


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_every_text_comes_back_exactly(text):
    assert round_trip(text) == text


@pytest.mark.parametrize(
    "text", ["", " ", "\n", " \n  a\n\n b ", "{x}[y]<z>", "a\tb\r\nc", "▁é💩\x00", *TEXTS[::40]]
)
def test_awkward_texts_come_back_exactly(text):
    assert round_trip(text) == text


@pytest.mark.parametrize("text", ["</s>", "a <pad> b", "<unk></s>"])
def test_a_text_that_spells_a_special_token_is_text(text):
    ids = ENCODER.encode([text])[0]
    assert set(ids[:-1].tolist()).isdisjoint({0, 1, 2})
    assert round_trip(text) == text


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
    with pytest.raises(ValueError, match=r"no tokenizer\.json there"):
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
