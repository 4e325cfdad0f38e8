"""Properties of the whole model: packing, padding, causality, losses, gradients."""

import copy

import pytest
import torch
import torch.nn.functional as F

from flan_moe.experts import SparseFeedForward
from flan_moe.model import FlanMoEForConditionalGeneration, FlanMoEOutput

EXPERT_CHOICE = {"name": "expert_choice", "num_experts": 4, "capacity_factor": 2.0}


def examples(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 7, (count, 2), generator=generator).tolist()
    return [
        tuple(torch.randint(2, 61, (length,), generator=generator) for length in pair)
        for pair in lengths
    ]


def pack(rows, encoder_length, decoder_length):
    """Put lists of (input, target) into packed rows, with their segments."""
    shape = (len(rows), encoder_length), (len(rows), decoder_length)
    ids, segments = torch.zeros(shape[0]).long(), torch.zeros(shape[0]).long()
    labels, decoder_segments = torch.full(shape[1], -100), torch.zeros(shape[1]).long()
    for row, members in enumerate(rows):
        start = decoder_start = 0
        for number, (source, target) in enumerate(members, start=1):
            end, decoder_end = start + len(source), decoder_start + len(target)
            ids[row, start:end], segments[row, start:end] = source, number
            labels[row, decoder_start:decoder_end] = target
            decoder_segments[row, decoder_start:decoder_end] = number
            start, decoder_start = end, decoder_end
    return {
        "input_ids": ids,
        "labels": labels,
        "encoder_segments": segments,
        "decoder_segments": decoder_segments,
    }


def test_packed_rows_equal_separate_sequences(sparse_model):
    model = sparse_model()
    members = examples(5)
    packed = pack([members[:3], members[3:]], 24, 22)
    with torch.no_grad():
        together = model(**packed)
        alone = [model(input_ids=x[None], labels=y[None]) for x, y in members]
    real = packed["decoder_segments"] > 0
    expected = torch.cat([output.logits[0] for output in alone])
    torch.testing.assert_close(together.logits[real], expected, atol=1e-5, rtol=1e-5)
    lengths = torch.tensor([float(len(y)) for _, y in members])
    losses = torch.stack([output.cross_entropy for output in alone])
    torch.testing.assert_close(together.cross_entropy, (losses * lengths).sum() / lengths.sum())


def test_packing_leaves_gradients_as_they_are(sparse_model):
    members = examples(4, seed=2)
    grads = []
    for rows in ([members[:2], members[2:]], [[member] for member in members]):
        model = sparse_model(seed=3)
        model(**pack(rows, 16, 16)).loss.backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    "routers",
    [
        pytest.param({}, id="top-2"),
        pytest.param({"encoder_router": EXPERT_CHOICE}, id="expert-choice-encoder"),
        pytest.param({"encoder_router": None, "decoder_router": None}, id="dense"),
    ],
)
def test_padding_changes_nothing(sparse_model, batch, routers):
    """Not even expert choice: padding is no token, so no expert can choose it."""
    model = sparse_model(**routers)
    wider = {
        "input_ids": F.pad(batch["input_ids"], (0, 5), value=17),
        "attention_mask": F.pad(batch["attention_mask"], (0, 5)),
        "labels": F.pad(batch["labels"], (0, 4), value=-100),
    }
    # a row of nothing, as packers that fill up a batch make it
    wider = {
        name: torch.cat([tensor, torch.full_like(tensor[:1], -100 if name == "labels" else 0)])
        for name, tensor in wider.items()
    }
    with torch.no_grad():
        narrow = model(**batch)
        padded = model(**wider)
    torch.testing.assert_close(padded.loss, narrow.loss, atol=1e-6, rtol=1e-6)
    for name, value in narrow.aux_losses.items():
        torch.testing.assert_close(padded.aux_losses[name], value, atol=1e-6, rtol=1e-6)
    counted = batch["labels"] != -100
    torch.testing.assert_close(
        padded.logits[:3, :8][counted], narrow.logits[counted], atol=1e-5, rtol=1e-5
    )


def test_segments_say_the_same_as_a_mask(sparse_model, batch):
    model = sparse_model()
    segments = {
        "encoder_segments": batch["attention_mask"],
        "decoder_segments": (batch["labels"] != -100).long(),
    }
    with torch.no_grad():
        by_mask = model(**batch)
        by_segments = model(**{**batch, **segments})
    torch.testing.assert_close(by_segments.loss, by_mask.loss)


@pytest.mark.parametrize("top_k", [1, 2])
def test_decoder_is_causal(sparse_model, batch, top_k):
    router = {"name": "top_k", "num_experts": 4, "top_k": top_k}
    model = sparse_model(decoder_router=router)
    ids = torch.randint(2, 61, (3, 9), generator=torch.Generator().manual_seed(4))
    changed = ids.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 59 + 2
    encoder = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        before = model(**encoder, decoder_input_ids=ids).logits
        after = model(**encoder, decoder_input_ids=changed).logits
    torch.testing.assert_close(after[:, :5], before[:, :5], atol=1e-6, rtol=1e-6)
    assert (after[:, 5] - before[:, 5]).abs().max() > 1e-3


def test_batch_mates_change_nothing(sparse_model, batch):
    model = sparse_model()
    with torch.no_grad():
        together = model(**batch).logits
        for row in range(3):
            alone = model(**{name: tensor[row : row + 1] for name, tensor in batch.items()}).logits
            counted = batch["labels"][row] != -100
            torch.testing.assert_close(
                alone[0, counted], together[row, counted], atol=1e-5, rtol=1e-5
            )


def test_loss_is_cross_entropy_plus_weighted_means(sparse_model, batch):
    model = sparse_model(balance_coef=0.3, z_coef=0.07)
    output = model(**batch)
    flat = F.cross_entropy(output.logits.flatten(0, 1), batch["labels"].flatten())
    torch.testing.assert_close(output.cross_entropy, flat)
    layers = [routing.losses for _, routing in output.routings]
    assert len(layers) == 3  # encoder layers 1 and 3, decoder layer 1
    for name in ("balance", "z"):
        mean = sum(losses[name] for losses in layers) / 3
        torch.testing.assert_close(output.aux_losses[name], mean)
    total = flat + 0.3 * output.aux_losses["balance"] + 0.07 * output.aux_losses["z"]
    torch.testing.assert_close(output.loss, total)


def test_routings_are_named_after_their_modules(sparse_model, batch):
    model = sparse_model()
    names = [name for name, _ in model(**batch).routings]
    assert names == [f"{stack}.layers.{i}.feed_forward" for stack, i in SPARSE_LAYERS]
    assert all(isinstance(model.get_submodule(name), SparseFeedForward) for name in names)


SPARSE_LAYERS = [("encoder", 1), ("encoder", 3), ("decoder", 1)]


def test_only_real_tokens_are_routed(sparse_model, batch):
    output = sparse_model()(**batch)
    tokens = {name.split(".")[0]: routing.num_tokens for name, routing in output.routings}
    assert tokens["encoder"] == int(batch["attention_mask"].sum())
    assert tokens["decoder"] == int((batch["labels"] != -100).sum())
    for _, routing in output.routings:
        routing.validate()


def test_decoder_inputs_made_by_a_collator_are_as_good_as_none(sparse_model, batch):
    """transformers' DataCollatorForSeq2Seq passes both; padding is recognised all the same."""
    model = sparse_model()
    decoder_ids = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    both = model(**batch, decoder_input_ids=decoder_ids)
    assert torch.equal(both.loss, model(**batch).loss)


def test_gradients_reach_routers_and_all_used_experts(sparse_model, batch):
    model = sparse_model(balance_coef=0.0).train()
    output = model(**batch)
    output.loss.backward()
    for name, routing in output.routings:
        layer = model.get_submodule(name)
        assert layer.router.weight.grad.abs().sum() > 0
        used_E = routing.stats["expert_load_E"] > 0
        reached_E = layer.experts.wo.grad.abs().flatten(1).sum(1) > 0
        assert torch.equal(reached_E, used_E)
        assert used_E.any()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_expert_choice_encoder_with_top_2_decoder_trains(sparse_config, batch):
    torch.manual_seed(0)
    config = sparse_config(encoder_router=EXPERT_CHOICE)
    model = FlanMoEForConditionalGeneration(config).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    first = None
    for _ in range(30):
        loss = model(**batch).loss
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * first


def test_dropout_rates_reach_their_places(sparse_config):
    for rate, expected in ((None, 0.1), (0.3, 0.3), (0.0, 0.0)):
        config = sparse_config(dropout_rate=0.1, expert_dropout_rate=rate)
        layers = FlanMoEForConditionalGeneration(config).encoder.layers
        assert layers[1].feed_forward.experts.dropout == expected
        assert layers[0].feed_forward.dropout == layers[0].self_attention.dropout == 0.1


def test_training_is_reproducible_and_dropout_is_on(sparse_config, batch):
    model = FlanMoEForConditionalGeneration(sparse_config(dropout_rate=0.2)).train()
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(model(**batch).loss.item())
    assert losses[0] == losses[1] != losses[2]
    model.eval()
    assert model(**batch).loss.item() == model(**batch).loss.item()


def test_expert_backends_agree(sparse_model, batch):
    model = sparse_model()
    losses = []
    for backend in ("reference", "grouped"):
        model.set_expert_backend(backend)
        losses.append(model(**batch).loss)
    torch.testing.assert_close(*losses)
    for setter in (model.set_expert_backend, model.set_attention_backend):
        with pytest.raises(ValueError, match="backend 'cuda': expected one of 'auto'"):
            setter("cuda")


def test_a_deep_copy_stands_on_its_own(sparse_model, batch):
    model = sparse_model()
    twin = copy.deepcopy(model)
    before = model(**batch).loss
    with torch.no_grad():
        twin.shared.weight.zero_()
    assert torch.equal(model(**batch).loss, before)
    assert not torch.equal(twin(**batch).loss, before)


def test_logits_can_be_left_out(sparse_model, batch):
    model = sparse_model()
    full, lean = model(**batch), model(**batch, output_logits=False)
    assert lean.logits is None
    assert torch.equal(lean.loss, full.loss)


def test_inputs_may_be_embeddings(sparse_model, batch):
    model = sparse_model()
    decoder_ids = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    mask = {"attention_mask": batch["attention_mask"]}
    by_ids = model(input_ids=batch["input_ids"], decoder_input_ids=decoder_ids, **mask)
    by_embeddings = model(
        inputs_embeds=model.shared(batch["input_ids"]),
        decoder_inputs_embeds=model.shared(decoder_ids),
        **mask,
    )
    assert torch.equal(by_embeddings.logits, by_ids.logits)


def test_gradient_checkpointing_runs_blocks_again_and_changes_no_gradient(sparse_config, batch):
    grads, runs = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = FlanMoEForConditionalGeneration(sparse_config(dropout_rate=0.1, z_coef=0.1)).train()
        if checkpointing:
            # transformers 5 renames it
            old_name = "gradient_checkpointing_enable"
            getattr(model, "activation_checkpointing_enable", getattr(model, old_name))()
        blocks = [*model.encoder.layers, *model.decoder.layers]
        seen = []
        for block in blocks:
            block.register_forward_pre_hook(lambda block, _, seen=seen: seen.append(block))
        torch.manual_seed(1)
        model(**batch).loss.backward()
        grads.append([p.grad for p in model.parameters()])
        runs.append([seen.count(block) for block in blocks])
    assert runs == [[1] * 6, [2] * 6]
    for plain, checkpointed in zip(*grads, strict=True):
        assert torch.equal(plain, checkpointed)


def test_bfloat16_autocast_stays_close(sparse_model, batch):
    model = sparse_model(dtype=torch.float32, initializer_factor=1.0)
    with torch.no_grad():
        full = model(**batch).loss
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(**batch).loss
    torch.testing.assert_close(half, full, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention_mask": torch.ones(3, 4)}, r"attention_mask has shape \(3, 4\); expected"),
        ({"input_ids": None}, "exactly one of input_ids and inputs_embeds"),
        ({"encoder_segments": torch.ones(3, 11).long()}, "must be given together"),
        (
            {"decoder_segments": torch.ones(3, 2).long(), "encoder_segments": torch.ones(3, 11)},
            r"decoder_segments has shape \(3, 2\)",
        ),
        (
            {"labels": torch.ones(3, 4).long(), "decoder_input_ids": torch.ones(3, 5).long()},
            r"labels has shape \(3, 4\); expected \(3, 5\)",
        ),
        ({"output_attentions": True}, "output_attentions=True"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(sparse_model, batch, arguments, message):
    with pytest.raises(ValueError, match=message):
        sparse_model()(**{**batch, **arguments})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda b: b["input_ids"].fill_(61),
            r"input_ids holds 61; expected ids below vocab_size, 61",
        ),
        (lambda b: b["input_ids"][0, 0].fill_(-1), "input_ids holds -1"),
        (
            lambda b: b["labels"][0, 0].fill_(99),
            "labels holds 99; expected ids below vocab_size, 61",
        ),
        (lambda b: b["labels"][1, -1].fill_(61), "labels holds 61"),
        (lambda b: b["labels"][1, -1].fill_(-1), "labels holds -1"),
        (lambda b: b.update(labels=b["labels"][:, :0]), r"labels has shape \(3, 0\)"),
        (lambda b: b.update(input_ids=b["input_ids"][:, :0]), r"input_ids has shape \(3, 0\)"),
    ],
)
def test_ids_of_another_vocabulary_and_empty_rows_are_named(sparse_model, batch, change, message):
    change(batch)
    with pytest.raises(ValueError, match=message):
        sparse_model()(input_ids=batch["input_ids"], labels=batch["labels"])


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("options", [{}, {"encoder_router": None}], ids=["sparse", "dense encoder"])
def test_the_encoders_tuple_stands_for_its_output(sparse_model, batch, hidden, options):
    model = sparse_model(**options)
    source = {key: batch[key] for key in ("input_ids", "attention_mask")}
    values = model.encoder(**source, output_hidden_states=hidden, return_dict=False)
    whole = model(**batch, output_hidden_states=hidden)
    again = model(
        encoder_outputs=values,
        attention_mask=batch["attention_mask"],
        labels=batch["labels"],
        output_hidden_states=hidden,
    )
    assert torch.equal(again.loss, whole.loss)
    assert [name for name, _ in again.routings] == [name for name, _ in whole.routings]
    assert len(again.encoder_hidden_states or ()) == len(whole.encoder_hidden_states or ())


def test_the_config_says_what_is_returned_unless_the_call_does(sparse_model, batch):
    model = sparse_model(output_hidden_states=True)
    assert len(model(**batch).encoder_hidden_states) == 5
    assert model(**batch, output_hidden_states=False).encoder_hidden_states is None
    model.config.return_dict = False
    assert isinstance(model(**batch), tuple)
    assert isinstance(model(**batch, return_dict=True), FlanMoEOutput)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e, d: d[0, 4].fill_(-1), r"decoder_segments\[0\] holds -1; expected 0 for padding"),
        (lambda e, d: e[1, 0].fill_(-3), r"encoder_segments\[1\] holds -3"),
        (lambda e, d: d[1, 0].fill_(2), r"decoder_segments\[1\] has segment 2 at two places"),
        (lambda e, d: e[0, 6].fill_(1), r"encoder_segments\[0\] has segment 1 at two places"),
        (lambda e, d: d[0, 0].fill_(0), None),
        (lambda e, d: (e.mul_(3), d.mul_(3)), None),
        (lambda e, d: (e.sub_(3).abs_(), d.sub_(3).abs_()), None),
    ],
    ids=["padding", "encoder", "pieces", "encoder pieces", "left padding", "gaps", "falling"],
)
def test_segments_that_contradict_themselves_are_refused(sparse_model, change, message):
    ids = torch.arange(2, 16).view(2, 7)
    encoder = torch.tensor([[1, 1, 1, 2, 2, 2, 2], [1, 1, 2, 2, 2, 2, 2]])
    decoder = torch.tensor([[1, 1, 2, 2, 2], [1, 1, 1, 2, 2]])
    change(encoder, decoder)
    segments = {"encoder_segments": encoder, "decoder_segments": decoder}
    if message is None:
        assert sparse_model()(ids, labels=ids[:, :5], **segments).loss.isfinite()
        return
    with pytest.raises(ValueError, match=message):
        sparse_model()(ids, labels=ids[:, :5], **segments)
