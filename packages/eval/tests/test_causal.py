"""The causal adapter against plain transformers calls, one row at a time."""

import pytest
import torch
from transformers import GenerationConfig

from flan_moe.eval import GenerateRequest, HFCausalModel, HFSeq2SeqModel, LoglikelihoodRequest

OPTIONS = ("red", "red blue", "red blue green", "big car", "yes", "we add them step by")


def direct_score(model, tokenizer, prompt, option):
    """Sum of the log-probabilities of the option's tokens after the prompt's, in float64."""
    context = tokenizer(prompt).input_ids
    ids = torch.tensor([[*context, *tokenizer(option).input_ids]])
    with torch.no_grad():
        log_p = model(input_ids=ids).logits[0].double().log_softmax(dim=-1)
    return sum(log_p[at - 1, ids[0, at]].item() for at in range(len(context), ids.shape[1]))


def requests_for(prompts):
    return [
        LoglikelihoodRequest(prompt, OPTIONS[: 1 + i % len(OPTIONS)])
        for i, prompt in enumerate(prompts)
    ]


def test_scores_equal_each_option_alone(gpt2, bare_tokenizer, prompts):
    found = HFCausalModel(gpt2, bare_tokenizer).loglikelihood(requests_for(prompts))
    for request, result in zip(requests_for(prompts), found, strict=True):
        expected = [direct_score(gpt2, bare_tokenizer, request.prompt, o) for o in request.options]
        assert result.log_probabilities == pytest.approx(expected, abs=1e-4)
        assert result.token_counts == tuple(len(option.split()) for option in request.options)


def test_scores_equal_the_loss_of_transformers(gpt2, bare_tokenizer):
    prompt, option = "what is the colour ?", "big car"
    context = bare_tokenizer(prompt).input_ids
    ids = torch.tensor([[*context, *bare_tokenizer(option).input_ids]])
    labels = ids.clone()
    labels[0, : len(context)] = -100
    with torch.no_grad():
        loss = gpt2(input_ids=ids, labels=labels).loss.item()
    (found,) = HFCausalModel(gpt2, bare_tokenizer).loglikelihood(
        [LoglikelihoodRequest(prompt, (option,))]
    )
    assert found.log_probabilities[0] == pytest.approx(-2 * loss, abs=1e-4)


@pytest.mark.parametrize(("token_budget", "max_rows"), [(1, 1), (80, 128), (300, 3), (10**6, 128)])
def test_answers_do_not_depend_on_the_batch(gpt2, bare_tokenizer, prompts, token_budget, max_rows):
    one_by_one = HFCausalModel(gpt2, bare_tokenizer, token_budget=1, max_rows=1)
    batched = HFCausalModel(gpt2, bare_tokenizer, token_budget=token_budget, max_rows=max_rows)
    for request, together in zip(
        requests_for(prompts), batched.loglikelihood(requests_for(prompts)), strict=True
    ):
        (alone,) = one_by_one.loglikelihood([request])
        assert together.log_probabilities == pytest.approx(alone.log_probabilities, abs=1e-4)
    requests = [GenerateRequest(prompt, 4 + i % 3 * 4) for i, prompt in enumerate(prompts)]
    assert batched.generate(requests) == [one_by_one.generate([r])[0] for r in requests]


def test_texts_equal_generate_one_by_one(gpt2, bare_tokenizer, prompts):
    found = HFCausalModel(gpt2, bare_tokenizer).generate([GenerateRequest(p, 10) for p in prompts])
    for prompt, text in zip(prompts, found, strict=True):
        inputs = bare_tokenizer(prompt, return_tensors="pt")
        ids = gpt2.generate(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            max_new_tokens=10,
            do_sample=False,
            pad_token_id=0,
        )
        new = ids[0, inputs.input_ids.shape[1] :]
        assert text == bare_tokenizer.decode(new, skip_special_tokens=True)
    assert len(set(found)) > 1


def test_the_models_own_generation_settings_change_nothing(
    gpt2, bare_tokenizer, prompts, monkeypatch
):
    lm = HFCausalModel(gpt2, bare_tokenizer)
    requests = [GenerateRequest(prompt, 6) for prompt in prompts]
    expected = lm.generate(requests)
    own = GenerationConfig(do_sample=True, temperature=50.0)
    monkeypatch.setattr(gpt2, "generation_config", own)
    assert lm.generate(requests) == expected


@pytest.fixture(scope="module")
def merging():
    """A tokenizer whose tokens span the place where prompt and option meet, and its model."""
    from tokenizers import Tokenizer, models
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    pieces = ["<pad>", "</s>", *"abcdx\n", "ab", "abc"]
    vocabulary = {piece: at for at, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocabulary, [("a", "b"), ("ab", "c")]))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>"
    )
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=len(pieces), n_positions=32, n_embd=16, n_layer=1, n_head=2, eos_token_id=1
    )
    return GPT2LMHeadModel(config).eval(), tokenizer


def test_tokens_across_the_boundary_are_scored_for_every_option(merging):
    model, tokenizer = merging
    lm = HFCausalModel(model, tokenizer, answer_separator="")
    # "xa" + "bc" is x|abc, "xa" + "d" is x|a|d: the condition both share is "x".
    (found,) = lm.loglikelihood([LoglikelihoodRequest("xa", ("bc", "d"))])
    assert found.token_counts == (1, 2)
    for text, score in (("xabc", found.log_probabilities[0]), ("xad", found.log_probabilities[1])):
        ids = torch.tensor([tokenizer(text).input_ids])
        with torch.no_grad():
            log_p = model(input_ids=ids).logits[0].log_softmax(dim=-1)
        expected = sum(log_p[at - 1, ids[0, at]].item() for at in range(1, ids.shape[1]))
        assert score == pytest.approx(expected, abs=1e-4)


def test_a_prompt_swallowed_by_the_option_is_conditioned_on_the_start(merging):
    model, tokenizer = merging
    lm = HFCausalModel(model, tokenizer, answer_separator="")
    (found,) = lm.loglikelihood([LoglikelihoodRequest("a", ("b", "d"))])
    assert found.token_counts == (1, 2)
    with torch.no_grad():
        log_p = model(input_ids=torch.tensor([[1]])).logits[0, 0].log_softmax(dim=-1)
    ab = tokenizer("ab").input_ids
    assert found.log_probabilities[0] == pytest.approx(log_p[ab[0]].item(), abs=1e-4)


def test_an_end_that_the_tokenizer_adds_is_not_part_of_the_prompt(gpt2, tokenizer, bare_tokenizer):
    requests = [GenerateRequest("what is 1 plus 2 ?", 8)]
    scored = [LoglikelihoodRequest("what is 1 plus 2 ?", ("red", "blue"))]
    ending, bare = HFCausalModel(gpt2, tokenizer), HFCausalModel(gpt2, bare_tokenizer)
    assert ending.generate(requests) == bare.generate(requests)
    assert ending.loglikelihood(scored) == bare.loglikelihood(scored)


def test_the_end_of_an_option_can_be_scored(gpt2, bare_tokenizer):
    prompt = "what is the colour ?"
    lm = HFCausalModel(gpt2, bare_tokenizer, end_of_option=True)
    (found,) = lm.loglikelihood([LoglikelihoodRequest(prompt, ("red", "red blue"))])
    assert found.token_counts == (2, 3)
    expected = direct_score(gpt2, bare_tokenizer, prompt, "red </s>")
    assert found.log_probabilities[0] == pytest.approx(expected, abs=1e-4)


def test_long_prompts_leave_room_for_the_answer(gpt2, bare_tokenizer):
    lm = HFCausalModel(gpt2, bare_tokenizer, max_total_tokens=12)
    request = GenerateRequest("yes " * 30 + "what is 1 plus", 8)
    assert lm.excess_tokens(request) == 34 + 8 - 12
    whole = HFCausalModel(gpt2, bare_tokenizer)
    assert lm.generate([request]) == whole.generate([GenerateRequest("what is 1 plus", 8)])
    scored = LoglikelihoodRequest("yes " * 30 + "what is", ("1 plus", "red"))
    assert lm.excess_tokens(scored) == 32 + 2 - 12
    short = LoglikelihoodRequest("yes " * 8 + "what is", ("1 plus", "red"))
    assert lm.loglikelihood([scored]) == whole.loglikelihood([short])
    with pytest.raises(ValueError, match="leaves no room"):
        lm.generate([GenerateRequest("red", 12)])


def test_the_positions_of_the_model_are_its_limit(gpt2, bare_tokenizer):
    assert HFCausalModel(gpt2, bare_tokenizer).max_tokens == 96
    with pytest.raises(ValueError, match="97 tokens; the model has 96 positions"):
        HFCausalModel(gpt2, bare_tokenizer, max_total_tokens=97)


def test_an_encoder_decoder_is_refused(t5, tokenizer, gpt2):
    with pytest.raises(ValueError, match="HFSeq2SeqModel"):
        HFCausalModel(t5, tokenizer)
    with pytest.raises(ValueError, match="not an encoder-decoder"):
        HFSeq2SeqModel(gpt2, tokenizer)
