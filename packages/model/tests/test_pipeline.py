"""transformers' own pipeline answers with a Flan-MoE model."""

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, pipeline

from flan_moe.model import register_auto_classes

pytestmark = pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) >= 5,
    reason=f"transformers 5 has no text2text-generation; found {transformers.__version__}",
)


def test_text_to_text(sparse_model, tmp_path):
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, **{f"w{i}": i for i in range(3, 61)}}
    tokens = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, **special)
    model = sparse_model(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    register_auto_classes()
    answer = pipeline("text2text-generation", model=str(tmp_path), device="cpu")
    texts = ["w4 w5 w6", "w7"]
    options = {"max_new_tokens": 5, "no_repeat_ngram_size": 1, "num_beams": 1}
    found = answer(texts, batch_size=2, **options)
    inputs = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    ids = model.generate(**inputs, **options)
    expected = tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert [one["generated_text"] for one in found] == expected
    assert all(len(text.split()) > 1 for text in expected)
