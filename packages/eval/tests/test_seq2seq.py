"""The encoder-decoder adapter against plain transformers calls, one prompt and option at a time."""

import copy
import logging

import pytest
import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from flan_moe.eval import (
    Fingerprinted,
    GenerateRequest,
    HFSeq2SeqModel,
    LanguageModel,
    LoglikelihoodRequest,
    TokenAware,
)

OPTIONS = ("red", "red blue", "red blue green", "big car", "yes", "we add them step by")


def direct_score(model, tokenizer, prompt, option):
    """Minus the loss that transformers computes for the option as labels, times its tokens."""
    inputs = tokenizer(prompt, return_tensors="pt")
    labels = tokenizer(option, return_tensors="pt").input_ids
    with torch.no_grad():
        loss = model(
            input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, labels=labels
        ).loss
    return -loss.item() * labels.shape[1]


def direct_text(model, tokenizer, prompt, max_new_tokens):
    inputs = tokenizer(prompt, return_tensors="pt")
    ids = model.generate(
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        max_new_tokens=max_new_tokens,
        do_sample=False,
    )
    return tokenizer.decode(ids[0], skip_special_tokens=True)


def score_requests(prompts):
    # Ragged: prompt i has its own number of options.
    return [
        LoglikelihoodRequest(prompt, OPTIONS[: 1 + i % len(OPTIONS)])
        for i, prompt in enumerate(prompts)
    ]


def test_it_is_a_language_model_with_all_capabilities(t5, tokenizer):
    lm = HFSeq2SeqModel(t5, tokenizer)
    for protocol in (LanguageModel, Fingerprinted, TokenAware):
        assert isinstance(lm, protocol)


def test_scores_equal_the_loss_of_each_option_alone(t5, tokenizer, prompts):
    requests = score_requests(prompts)
    found = HFSeq2SeqModel(t5, tokenizer).loglikelihood(requests)
    for request, result in zip(requests, found, strict=True):
        expected = [direct_score(t5, tokenizer, request.prompt, o) for o in request.options]
        assert result.log_probabilities == pytest.approx(expected, abs=1e-4)
        assert result.token_counts == tuple(len(o.split()) + 1 for o in request.options)


def test_scores_equal_a_float64_computation_of_the_logits(t5, tokenizer, prompts):
    lm = HFSeq2SeqModel(t5, tokenizer)
    double = copy.deepcopy(t5).double()
    request = LoglikelihoodRequest(prompts[2], OPTIONS)
    (found,) = lm.loglikelihood([request])
    encoded = tokenizer(request.prompt, return_tensors="pt")
    for option, score in zip(OPTIONS, found.log_probabilities, strict=True):
        labels = tokenizer(option).input_ids
        with torch.no_grad():
            logits = double(
                input_ids=encoded.input_ids, decoder_input_ids=torch.tensor([[0, *labels[:-1]]])
            ).logits[0]
        probabilities = logits.softmax(dim=-1)
        expected = sum(probabilities[at, label].log().item() for at, label in enumerate(labels))
        assert score == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("token_budget", "max_rows"), [(1, 1), (64, 128), (300, 3), (10**6, 128)])
def test_answers_do_not_depend_on_the_batch(t5, tokenizer, prompts, token_budget, max_rows):
    one_by_one = HFSeq2SeqModel(t5, tokenizer, token_budget=1, max_rows=1)
    batched = HFSeq2SeqModel(t5, tokenizer, token_budget=token_budget, max_rows=max_rows)
    for request, together in zip(
        score_requests(prompts), batched.loglikelihood(score_requests(prompts)), strict=True
    ):
        (alone,) = one_by_one.loglikelihood([request])
        assert together.log_probabilities == pytest.approx(alone.log_probabilities, abs=1e-4)
    requests = [GenerateRequest(prompt, 3 + i % 3 * 5) for i, prompt in enumerate(prompts)]
    assert batched.generate(requests) == [one_by_one.generate([r])[0] for r in requests]


def test_texts_equal_generate_one_by_one(t5, tokenizer, prompts):
    found = HFSeq2SeqModel(t5, tokenizer).generate([GenerateRequest(p, 12) for p in prompts])
    assert found == [direct_text(t5, tokenizer, prompt, 12) for prompt in prompts]
    assert len(set(found)) > 1


def test_the_models_own_generation_settings_change_nothing(t5, tokenizer, prompts, monkeypatch):
    lm = HFSeq2SeqModel(t5, tokenizer)
    requests = [GenerateRequest(prompt, 6) for prompt in prompts]
    expected = lm.generate(requests)
    own = GenerationConfig(
        do_sample=True, temperature=50.0, num_beams=3, repetition_penalty=9.0, max_length=2
    )
    monkeypatch.setattr(t5, "generation_config", own)
    assert lm.generate(requests) == expected
    assert t5.generation_config is own


def test_a_model_that_computes_nan_is_refused(t5, tokenizer, prompts):
    broken = copy.deepcopy(t5)
    with torch.no_grad():
        broken.shared.weight.fill_(float("nan"))
    lm = HFSeq2SeqModel(broken, tokenizer)
    with pytest.raises(ValueError, match="logits hold NaN"):
        lm.generate([GenerateRequest(prompts[0], 6)])
    with pytest.raises(ValueError, match=r"log_probabilities: \(nan.*finite numbers"):
        lm.loglikelihood([LoglikelihoodRequest(prompts[0], OPTIONS)])


def test_the_decoder_is_bounded_by_the_request_and_by_nothing_else(t5, tokenizer, prompts):
    ids = HFSeq2SeqModel(t5, tokenizer)._continue([[3, 4, 5, 1], [5] * 60], 45)
    assert ids.shape == (2, 45)  # transformers' own default would be 20
    short = HFSeq2SeqModel(t5, tokenizer)._continue([[3, 4, 5, 1], [5] * 60], 7)
    assert short.shape == (2, 7)
    assert torch.equal(short, ids[:, :7])


def test_the_encoder_reads_every_prompt_once(t5, tokenizer, prompts):
    lm = HFSeq2SeqModel(t5, tokenizer)
    rows = []
    hook = t5.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    try:
        lm.loglikelihood([LoglikelihoodRequest(prompt, OPTIONS) for prompt in prompts])
    finally:
        hook.remove()
    assert sum(rows) == len(prompts)


def test_the_end_of_an_option_can_be_left_out(t5, tokenizer):
    request = LoglikelihoodRequest("what is the colour ?", ("red", "red blue"))
    (whole,) = HFSeq2SeqModel(t5, tokenizer, end_of_option=False).loglikelihood([request])
    assert whole.token_counts == (1, 2)
    # Without its end a beginning is at least as likely as anything that goes on from it.
    assert whole.log_probabilities[0] >= whole.log_probabilities[1]
    (ended,) = HFSeq2SeqModel(t5, tokenizer).loglikelihood([request])
    assert all(a < b for a, b in zip(ended.log_probabilities, whole.log_probabilities, strict=True))


def test_stop_strings_cut_the_text(t5, tokenizer, prompts):
    lm = HFSeq2SeqModel(t5, tokenizer)
    (text,) = lm.generate([GenerateRequest(prompts[0], 12)])
    middle = text[len(text) // 2 :][:3]
    (cut,) = lm.generate([GenerateRequest(prompts[0], 12, stop=("never", middle))])
    assert cut == text[: text.index(middle)]


def test_a_model_in_training_is_left_in_training_and_scored_without_dropout(t5, tokenizer, prompts):
    lm = HFSeq2SeqModel(t5, tokenizer)
    expected = lm.loglikelihood(score_requests(prompts))
    t5.train()
    try:
        assert lm.loglikelihood(score_requests(prompts)) == expected
        assert t5.training
    finally:
        t5.eval()


def test_long_prompts_keep_their_end_and_say_so(t5, tokenizer, caplog):
    lm = HFSeq2SeqModel(t5, tokenizer, max_input_tokens=6)
    request = GenerateRequest("yes " * 20 + "what is 1 plus", 8)
    assert lm.excess_tokens(request) == 24 + 1 - 6
    with caplog.at_level(logging.WARNING):
        found = lm.generate([request, GenerateRequest("red", 8)])
    assert "1 of 2 prompts lost their beginning" in caplog.text
    assert found == HFSeq2SeqModel(t5, tokenizer).generate(
        [GenerateRequest("yes what is 1 plus", 8), GenerateRequest("red", 8)]
    )


def test_nothing_asked_nothing_answered(t5, tokenizer):
    lm = HFSeq2SeqModel(t5, tokenizer)
    assert lm.generate([]) == []
    assert lm.loglikelihood([]) == []


def test_the_fingerprint_follows_weights_tokenizer_and_settings(t5, tokenizer, bare_tokenizer):
    base = HFSeq2SeqModel(t5, tokenizer).fingerprint
    assert HFSeq2SeqModel(t5, tokenizer, token_budget=7).fingerprint == base
    tokenizer(["red", "red blue"], padding=True)  # leaves a mark in the backend
    assert HFSeq2SeqModel(t5, tokenizer).fingerprint == base
    assert HFSeq2SeqModel(t5, bare_tokenizer).fingerprint != base
    assert HFSeq2SeqModel(t5, tokenizer, end_of_option=False).fingerprint != base
    other = copy.deepcopy(t5)
    with torch.no_grad():
        other.lm_head.weight[3, 3] += 1e-6
    assert HFSeq2SeqModel(other, tokenizer).fingerprint != base


def test_a_tokenizer_that_is_too_large_is_refused(t5, tokenizer):
    small = copy.deepcopy(t5)
    small.resize_token_embeddings(10)
    with pytest.raises(ValueError, match=r"tokenizer has \d+ tokens and the model 10 embeddings"):
        HFSeq2SeqModel(small, tokenizer)


def test_impossible_settings_are_refused(t5, tokenizer):
    with pytest.raises(ValueError, match="token_budget: 0"):
        HFSeq2SeqModel(t5, tokenizer, token_budget=0)
    with pytest.raises(ValueError, match="max_tokens: 0"):
        HFSeq2SeqModel(t5, tokenizer, max_input_tokens=0)
    decoder = GPT2LMHeadModel(GPT2Config(vocab_size=100, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(ValueError, match="not an encoder-decoder"):
        HFSeq2SeqModel(decoder, tokenizer)


def test_an_option_without_tokens_is_refused(t5, tokenizer):
    with pytest.raises(ValueError, match="option ' ' has no tokens"):
        HFSeq2SeqModel(t5, tokenizer).loglikelihood([LoglikelihoodRequest("red", ("red", " "))])
