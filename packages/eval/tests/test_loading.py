"""Models are loaded by path, with their tokenizer, or refused with a reason."""

import json

import pytest
import torch

from flan_moe.eval import GenerateRequest, HFCausalModel, HFSeq2SeqModel, load_language_model


@pytest.fixture
def saved(tmp_path, t5, tokenizer):
    t5.save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    return tmp_path / "t5"


def test_an_encoder_decoder_is_loaded_with_its_tokenizer(saved, t5, tokenizer):
    lm = load_language_model(saved, device="cpu", max_tokens=50, token_budget=200)
    assert isinstance(lm, HFSeq2SeqModel)
    assert (lm.max_tokens, lm.token_budget) == (50, 200)
    requests = [GenerateRequest("what is 1 plus 2 ?", 8)]
    assert lm.generate(requests) == HFSeq2SeqModel(t5, tokenizer).generate(requests)
    again = load_language_model(saved, device="cpu", max_tokens=50)
    assert again.fingerprint == lm.fingerprint


def test_a_causal_model_is_loaded_with_a_tokenizer_from_elsewhere(
    tmp_path, gpt2, bare_tokenizer, saved
):
    gpt2.save_pretrained(tmp_path / "gpt2")
    bare_tokenizer.save_pretrained(tmp_path / "tokenizer")
    lm = load_language_model(tmp_path / "gpt2", tokenizer=tmp_path / "tokenizer", device="cpu")
    assert isinstance(lm, HFCausalModel)
    requests = [GenerateRequest("what is 1 plus 2 ?", 8)]
    assert lm.generate(requests) == HFCausalModel(gpt2, bare_tokenizer).generate(requests)


def test_weights_can_be_held_in_another_type(saved):
    lm = load_language_model(saved, device="cpu", dtype="bfloat16")
    assert next(lm.model.parameters()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="dtype: 'int8'"):
        load_language_model(saved, dtype="int8")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        load_language_model(tmp_path / "nowhere")


def test_a_model_without_tokenizer_is_refused(tmp_path, t5):
    t5.save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match="t5: no tokenizer there"):
        load_language_model(tmp_path / "t5")


def test_truncated_weights_are_refused(saved):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"t5: cannot load a model: .*Safetensor"):
        load_language_model(saved, device="cpu")


def test_missing_weights_are_refused_and_not_invented(saved):
    from safetensors.torch import load_file, save_file

    weights = load_file(saved / "model.safetensors")
    del weights["decoder.final_layer_norm.weight"]
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are missing, the first is decoder\.final"):
        load_language_model(saved, device="cpu")


def test_weights_that_the_configuration_has_no_place_for_are_refused(saved):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"num_decoder_layers": 1}))
    with pytest.raises(ValueError, match=r"t5: \d+ weights have no place in the model"):
        load_language_model(saved, device="cpu")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"device": "abacus"}, r"device: 'abacus'; expected one that torch can use"),
        ({"device": "meta"}, r"device: 'meta'; expected one that torch can use"),
        ({"max_tokens": 0}, r"max_tokens: 0; expected at least 1"),
        ({"token_budget": -1}, r"token_budget: -1; expected at least 1"),
    ],
)
def test_settings_are_refused_before_anything_is_read(tmp_path, settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        load_language_model(tmp_path / "nowhere", **settings)


def test_a_model_that_an_installed_package_registers(tmp_path, tokenizer, prompts):
    """flan_moe checkpoints, where the package that defines them is installed."""
    from importlib.metadata import entry_points

    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    plugins = entry_points(group="flan_moe.register_auto")
    if not plugins:
        pytest.skip("no package registers models under flan_moe.register_auto")
    for plugin in plugins:
        plugin.load()()
    router = {"name": "top_k", "num_experts": 4, "top_k": 2}
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "flan_moe",
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        encoder_router=router,
        decoder_router=router,
    )
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / "moe")
    tokenizer.save_pretrained(tmp_path / "moe")
    lm = load_language_model(tmp_path / "moe", device="cpu")
    alone = HFSeq2SeqModel(lm.model, tokenizer, token_budget=1, max_rows=1)
    requests = [GenerateRequest(prompt, 8) for prompt in prompts]
    assert lm.generate(requests) == [alone.generate([r])[0] for r in requests]

    from flan_moe.eval import LoglikelihoodRequest

    scored = [LoglikelihoodRequest(prompt, ("red", "red blue", "big car")) for prompt in prompts]
    for request, found in zip(scored, lm.loglikelihood(scored), strict=True):
        for option, score in zip(request.options, found.log_probabilities, strict=True):
            labels = tokenizer(option, return_tensors="pt").input_ids
            with torch.no_grad():
                output = lm.model(
                    input_ids=tokenizer(request.prompt, return_tensors="pt").input_ids,
                    labels=labels,
                )
            expected = -output.cross_entropy.item() * labels.shape[1]
            assert score == pytest.approx(expected, abs=1e-4)
