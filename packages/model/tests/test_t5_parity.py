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
