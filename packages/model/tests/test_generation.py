import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

from flan_moe.model import stack
from flan_moe.model.output import CACHE_KEY

WAITS = {"aten::nonzero", "aten::_local_scalar_dense", "aten::is_nonzero"}


class WaitsForTheDevice(TorchDispatchMode):
    """Lists the operations for which the host would wait, had they run on a GPU."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in WAITS:
            self.seen.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def encoder_inputs(batch):
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def test_cached_logits_equal_uncached_at_every_step(sparse_model, batch):
    model = sparse_model()
    ids = torch.randint(2, 61, (3, 7), generator=torch.Generator().manual_seed(5))
    ids[:, 0] = 0
    inputs = encoder_inputs(batch)
    with torch.no_grad():
        whole = model(**inputs, decoder_input_ids=ids).logits
        encoded = model.encoder(**inputs)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        for step in range(7):
            output = model(
                encoder_outputs=encoded,
                attention_mask=inputs["attention_mask"],
                decoder_input_ids=ids[:, step : step + 1],
                past_key_values=cache,
            )
            torch.testing.assert_close(output.logits[:, 0], whole[:, step], atol=1e-5, rtol=1e-5)
    assert cache.get_seq_length() == 7
    assert cache.cross_attention_cache.get_seq_length() == 11


def test_a_cached_step_does_not_wait_for_the_device(sparse_model, batch, monkeypatch):
    """The encoder's layout serves to make keys and values, which the cache then has."""
    monkeypatch.setattr(stack, "check_ids", lambda *arguments: None)  # reads on the CPU only
    model = sparse_model(encoder_router=None, decoder_router=None)
    arguments = {
        "attention_mask": batch["attention_mask"],
        "decoder_input_ids": torch.zeros(3, 1).long(),
        "past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache()),
    }
    with torch.no_grad():
        arguments["encoder_outputs"] = model.encoder(**encoder_inputs(batch))
        with WaitsForTheDevice() as first:
            model(**arguments)
        with WaitsForTheDevice() as second:
            model(**arguments)
    assert first.seen == ["aten::nonzero"]
    assert second.seen == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_mask": torch.ones(3, 12)}, r"expected \(3, 11\), like the input"),
        ({"decoder_input_ids": torch.zeros(2, 1).long()}, "decoder has 2 rows, the encoder 3"),
    ],
)
def test_shapes_are_checked_in_cached_steps_too(sparse_model, batch, change, message):
    model = sparse_model()
    arguments = {
        "attention_mask": batch["attention_mask"],
        "decoder_input_ids": torch.zeros(3, 1).long(),
        "past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache()),
    }
    with torch.no_grad():
        arguments["encoder_outputs"] = model.encoder(**encoder_inputs(batch))
        model(**arguments)
        with pytest.raises(ValueError, match=message):
            model(**{**arguments, **change})


def test_a_padded_prompt_decodes_as_without_padding(sparse_model, batch):
    """Decoder prompts of different lengths, padded on the left, then one more token."""
    model = sparse_model()
    inputs = {name: tensor[:1] for name, tensor in encoder_inputs(batch).items()}
    prompt = torch.tensor([[0, 7, 8, 9, 10]])
    padded = torch.tensor([[3, 3, 0, 7, 8]])
    mask = torch.tensor([[0, 0, 1, 1, 1]])
    with torch.no_grad():
        whole = model(**inputs, decoder_input_ids=prompt).logits
        first = model(
            **inputs, decoder_input_ids=padded, decoder_attention_mask=mask, use_cache=True
        )
        second = model(
            **inputs,
            decoder_input_ids=prompt[:, 3:],
            decoder_attention_mask=torch.cat([mask, mask[:, -2:]], dim=1),
            past_key_values=first.past_key_values,
        )
    torch.testing.assert_close(first.logits[:, 2:], whole[:, :3], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(second.logits, whole[:, 3:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "mode",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 2, "num_return_sequences": 2, "length_penalty": 0.5},
    ],
    ids=["greedy", "beam", "two-best"],
)
def test_generation_is_the_same_with_and_without_cache(sparse_model, batch, mode):
    model = sparse_model()
    arguments = {**encoder_inputs(batch), "max_new_tokens": 8, "no_repeat_ngram_size": 2, **mode}
    cached = model.generate(**arguments, use_cache=True)
    assert cached.shape[0] == 3 * mode.get("num_return_sequences", 1)
    assert torch.equal(cached, model.generate(**arguments, use_cache=False))


def test_a_batch_generates_what_its_members_generate_alone(sparse_model, batch):
    model = sparse_model()
    arguments = {"max_new_tokens": 8, "no_repeat_ngram_size": 2}
    together = model.generate(**encoder_inputs(batch), **arguments)
    for row in range(3):
        length = int(batch["attention_mask"][row].sum())
        alone = model.generate(input_ids=batch["input_ids"][row : row + 1, :length], **arguments)
        size = alone.shape[1]
        assert torch.equal(together[row, :size], alone[0])


def test_sampling_is_reproducible(sparse_model, batch):
    model = sparse_model()
    arguments = {**encoder_inputs(batch), "max_new_tokens": 8, "do_sample": True}
    outcomes = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outcomes.append(model.generate(**arguments).tolist())
    assert outcomes[0] == outcomes[1] != outcomes[2]


def test_generation_stops_at_the_end_token(sparse_model, batch):
    model = sparse_model()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.generation_config.suppress_tokens = [0]  # all logits equal; the first allowed is 1, EOS
    out = model.generate(**encoder_inputs(batch), max_new_tokens=8)
    assert out.tolist() == [[0, 1]] * 3


def test_scores_and_hidden_states_can_be_returned(sparse_model, batch):
    model = sparse_model()
    out = model.generate(
        **encoder_inputs(batch),
        max_new_tokens=3,
        return_dict_in_generate=True,
        output_scores=True,
        output_hidden_states=True,
    )
    assert len(out.scores) == 3
    assert len(out.decoder_hidden_states) == 3
    assert len(out.encoder_hidden_states) == model.config.num_layers + 1


def test_a_cache_goes_by_either_of_its_two_names(sparse_model, batch):
    """transformers 5.24 calls ``cache`` what was ``past_key_values``; its `generate` knows one."""
    model = sparse_model()
    inputs = {**encoder_inputs(batch), "decoder_input_ids": torch.zeros(3, 1).long()}
    outputs = []
    with torch.no_grad():
        for name in ("past_key_values", "cache"):
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
            outputs += [model(**inputs, **{name: cache}), model(**inputs, **{name: cache})]
            assert outputs[-1][CACHE_KEY] is cache
            assert cache.get_seq_length() == 2
    assert torch.equal(outputs[1].logits, outputs[3].logits)
    assert not torch.equal(outputs[0].logits, outputs[1].logits)
    with pytest.raises(ValueError, match="two names of one thing"):
        model(**inputs, cache=cache, past_key_values=cache)


def test_caches_that_do_not_fit_are_refused(sparse_model, batch):
    model = sparse_model()
    arguments = {**encoder_inputs(batch), "decoder_input_ids": torch.zeros(3, 1).long()}
    static = StaticCache(config=model.config, max_cache_len=8)
    for cache in (DynamicCache(), EncoderDecoderCache(static, DynamicCache())):
        with pytest.raises(ValueError, match="expected an EncoderDecoderCache of two DynamicCache"):
            model(**arguments, past_key_values=cache)
    with pytest.raises(ValueError, match="packed segments"):
        model(
            **arguments,
            past_key_values=EncoderDecoderCache(DynamicCache(), DynamicCache()),
            encoder_segments=batch["attention_mask"],
        )
