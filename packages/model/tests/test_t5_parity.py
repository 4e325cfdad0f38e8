"""A dense model computes what transformers' T5 computes with the same weights."""

import pytest
import torch

VARIANTS = [
    pytest.param(True, False, id="v1.1-gated-untied"),
    pytest.param(False, True, id="original-relu-tied"),
]


@pytest.mark.parametrize(("gated", "tied"), VARIANTS)
def test_logits_and_loss_equal_t5(t5_pair, batch, gated, tied):
    t5, ours = t5_pair(gated=gated, tied=tied)
    with torch.no_grad():
        theirs = t5(**batch)
        mine = ours(**batch)
    counted = batch["labels"] != -100
    assert theirs.logits[counted].std() > 0.05  # not a comparison of nothing with nothing
    torch.testing.assert_close(mine.logits[counted], theirs.logits[counted], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mine.loss, theirs.loss, atol=1e-5, rtol=1e-5)


def test_logits_of_the_flan_t5_shape(t5_pair, batch):
    """Six heads of 64 on a width of 512 (small), 8 encoder and 8 decoder layers at a small V."""
    shape = {"d_model": 512, "d_kv": 64, "num_heads": 6, "d_ff": 1024, "num_layers": 8}
    t5, ours = t5_pair(gated=True, tied=False, num_decoder_layers=8, **shape)
    with torch.no_grad():
        # As after training, scores of a few units: T5's own initial ones are of 500.
        for model in (t5, ours):
            for name, weight in model.named_parameters():
                if ".q." in name:
                    weight.mul_(0.1)
        theirs, mine = t5(**batch), ours(**batch)
    counted = batch["labels"] != -100
    scale = theirs.logits[counted].abs().max()
    torch.testing.assert_close(
        mine.logits[counted] / scale, theirs.logits[counted] / scale, atol=1e-5, rtol=0
    )


def test_packed_rows_equal_what_t5_makes_of_each_sequence_alone(t5_pair):
    t5, ours = t5_pair(gated=True, tied=False)
    generator = torch.Generator().manual_seed(3)
    lengths = [(5, 3), (4, 6), (7, 2)]
    pairs = [
        [torch.randint(2, 61, (length,), generator=generator) for length in pair]
        for pair in lengths
    ]
    sources, targets = zip(*pairs, strict=True)
    number = torch.arange(1, len(pairs) + 1)
    sides = [torch.tensor(side) for side in zip(*lengths, strict=True)]
    with torch.no_grad():
        packed = ours(
            input_ids=torch.cat(sources)[None],
            labels=torch.cat(targets)[None],
            encoder_segments=number.repeat_interleave(sides[0])[None],
            decoder_segments=number.repeat_interleave(sides[1])[None],
        )
        alone = [t5(input_ids=x[None], labels=y[None]).logits[0] for x, y in pairs]
    torch.testing.assert_close(packed.logits[0], torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_cached_steps_equal_t5_at_every_step(t5_pair, batch):
    t5, ours = t5_pair(gated=True, tied=False)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    ids = torch.randint(2, 61, (3, 6), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        whole = t5(**inputs, decoder_input_ids=ids).logits
        cache = None
        for step in range(ids.shape[1]):
            output = ours(
                **inputs,
                decoder_input_ids=ids[:, step : step + 1],
                past_key_values=cache,
                use_cache=True,
            )
            cache = output.past_key_values
            torch.testing.assert_close(output.logits[:, 0], whole[:, step], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_padding_on_either_side_of_both_inputs(t5_pair, batch, padding_side):
    t5, ours = t5_pair(gated=True, tied=False)
    decoder_ids = torch.randint(2, 61, (3, 6), generator=torch.Generator().manual_seed(1))
    mask = batch["attention_mask"]
    decoder_mask = torch.ones_like(decoder_ids)
    decoder_mask[1, 4:] = 0
    if padding_side == "left":
        mask, decoder_mask = mask.flip(1), decoder_mask.flip(1)
    inputs = {
        "input_ids": batch["input_ids"],
        "attention_mask": mask,
        "decoder_input_ids": decoder_ids,
        "decoder_attention_mask": decoder_mask,
    }
    with torch.no_grad():
        theirs = t5(**inputs)
        mine = ours(**inputs)
    real = decoder_mask.bool()
    torch.testing.assert_close(mine.logits[real], theirs.logits[real], atol=1e-5, rtol=1e-5)
    assert not mine.logits[~real].any()
    torch.testing.assert_close(
        mine.encoder_last_hidden_state[mask.bool()],
        theirs.encoder_last_hidden_state[mask.bool()],
        atol=1e-5,
        rtol=1e-5,
    )


def test_hidden_states_of_every_layer(t5_pair, batch):
    t5, ours = t5_pair(gated=True, tied=False)
    inputs = {"input_ids": batch["input_ids"], "decoder_input_ids": batch["input_ids"]}
    with torch.no_grad():
        theirs = t5(**inputs, output_hidden_states=True)
        mine = ours(**inputs, output_hidden_states=True)
    for stack in ("encoder", "decoder"):
        name = f"{stack}_hidden_states"
        assert len(mine[name]) == len(theirs[name]) == ours.config.layer_count(stack) + 1
        for x, y in zip(mine[name], theirs[name], strict=True):
            torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)


def test_gradients_equal_t5(t5_pair, batch):
    t5, ours = t5_pair(gated=True, tied=False)
    t5(**batch).loss.backward()
    ours(**batch).loss.backward()
    torch.testing.assert_close(ours.shared.weight.grad, t5.shared.weight.grad, atol=1e-6, rtol=1e-4)
    for stack in ("encoder", "decoder"):
        theirs = getattr(t5, stack).block[0].layer[0].SelfAttention
        mine = getattr(ours, stack)
        torch.testing.assert_close(
            mine.position_bias.weight.grad,
            theirs.relative_attention_bias.weight.grad,
            atol=1e-6,
            rtol=1e-4,
        )
        torch.testing.assert_close(
            mine.layers[0].self_attention.k.weight.grad, theirs.k.weight.grad, atol=1e-6, rtol=1e-4
        )


def test_dropout_falls_where_t5_drops(t5_pair):
    """Without padding the same numbers are drawn in the same order, so that one seed decides."""
    t5, ours = t5_pair(gated=True, tied=False, dropout_rate=0.3)
    generator = torch.Generator().manual_seed(4)
    inputs = {
        "input_ids": torch.randint(2, 61, (3, 9), generator=generator),
        "decoder_input_ids": torch.randint(2, 61, (3, 5), generator=generator),
    }
    with torch.no_grad():
        still = ours(**inputs).logits
        outputs = []
        for model in (t5.train(), ours.train()):
            torch.manual_seed(5)
            outputs.append(model(**inputs).logits)
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-5, rtol=1e-5)
    assert (outputs[1] - still).abs().mean() > 0.01


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize(("gated", "tied"), VARIANTS)
def test_generation_equals_t5(t5_pair, batch, gated, tied, beams):
    t5, ours = t5_pair(gated=gated, tied=tied)
    arguments = {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "max_new_tokens": 12,
        "num_beams": beams,
        "do_sample": False,
        "no_repeat_ngram_size": 2,  # a random tied model would repeat one token
    }
    theirs = t5.generate(**arguments)
    assert len(set(theirs.flatten().tolist())) > 3
    assert torch.equal(ours.generate(**arguments), theirs)
