"""With Switch routing, logits and losses equal transformers' SwitchTransformers, with drops too."""

import pytest
import torch
import transformers
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

from flan_moe.model import FlanMoEConfig
from flan_moe.routing import Router, chosen_experts

pytestmark = pytest.mark.skipif(
    not transformers.__version__.startswith("4.57."),
    reason="the reference is the Switch of transformers 4.57; 5.0 to 5.17 never apply capacity "
    f"and later ones change its losses; found {transformers.__version__}",
)


def make_pair(with_weights_of, expert_capacity=64, **capacity):
    """Their model and ours with its weights; at 64 no expert of these short rows is ever full."""
    sizes = {"vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4}
    torch.manual_seed(0)
    theirs = SwitchTransformersForConditionalGeneration(
        SwitchTransformersConfig(
            **sizes,
            num_layers=4,
            num_decoder_layers=4,
            num_sparse_encoder_layers=2,
            num_sparse_decoder_layers=2,
            num_experts=4,
            expert_capacity=expert_capacity,  # per row and expert
            dropout_rate=0.0,
            router_jitter_noise=0.0,
            decoder_start_token_id=0,
        )
    ).eval()
    for module in theirs.modules():
        if type(module).__name__ == "SwitchTransformersTop1Router":
            torch.nn.init.normal_(module.classifier.weight, std=0.3)  # use all experts
    router = {"name": "switch", "num_experts": 4, **capacity}
    config = FlanMoEConfig(
        **sizes,
        num_layers=4,
        activation="relu",
        tie_word_embeddings=True,
        dropout_rate=0.0,
        encoder_router=router,
        decoder_router=router,
    )
    return theirs, with_weights_of(config, theirs)


@pytest.fixture
def pair(with_weights_of):
    return make_pair(with_weights_of)


def test_logits_and_cross_entropy_equal_switch(pair, batch):
    switch, ours = pair
    with torch.no_grad():
        theirs = switch(**batch)
        mine = ours(**batch)
    counted = batch["labels"] != -100
    torch.testing.assert_close(mine.logits[counted], theirs.logits[counted], atol=1e-5, rtol=1e-5)
    expected = torch.nn.functional.cross_entropy(theirs.logits[counted], batch["labels"][counted])
    torch.testing.assert_close(mine.cross_entropy, expected, atol=1e-5, rtol=1e-5)
    used = {int((routing.stats["expert_load_E"] > 0).sum()) for _, routing in mine.routings}
    assert max(used) >= 3


def test_logits_and_losses_equal_switch_where_tokens_are_dropped(with_weights_of):
    """One row without padding: theirs counts capacity per row, and routes padding too."""
    full = {"capacity_factor": 1e-6, "min_capacity": 2}
    switch, ours = make_pair(with_weights_of, expert_capacity=2, **full)
    row = {"input_ids": torch.randint(2, 61, (1, 14)), "labels": torch.randint(2, 61, (1, 12))}
    with torch.no_grad():
        theirs = switch.train()(**row, output_router_logits=True)
        mine = ours.train()(**row)
    dropped = [float(routing.stats["dropped_fraction"]) for _, routing in mine.routings]
    assert len(dropped) == 4
    assert min(dropped) > 0
    torch.testing.assert_close(mine.logits, theirs.logits, atol=1e-5, rtol=1e-5)
    for stack in ("encoder", "decoder"):
        losses = [r.losses["z"] for name, r in mine.routings if name.startswith(stack)]
        z = getattr(theirs, f"{stack}_z_loss")
        torch.testing.assert_close(torch.stack(losses).mean(), z, atol=1e-5, rtol=1e-5)
    auxiliary = switch.config.router_z_loss_coef * (theirs.encoder_z_loss + theirs.decoder_z_loss)
    auxiliary += switch.config.router_aux_loss_coef * (
        theirs.encoder_aux_loss + theirs.decoder_aux_loss
    )
    torch.testing.assert_close(mine.cross_entropy + auxiliary, theirs.loss, atol=1e-5, rtol=1e-5)


def test_the_loss_of_switch_is_recomposed_from_our_parts(with_weights_of):
    """Theirs, in full: the balance loss is over the layers' tokens in one list, not a mean of
    layers, counts what was kept, and books a dropped token under expert 0."""
    full = {"capacity_factor": 1e-6, "min_capacity": 2}
    switch, ours = make_pair(with_weights_of, expert_capacity=2, **full)
    row = {"input_ids": torch.randint(2, 61, (1, 14)), "labels": torch.randint(2, 61, (1, 12))}
    seen = {"encoder": [], "decoder": []}

    def note(stack):
        return lambda router, args, routing: seen[stack].append((router.score(args[0]), routing))

    for name, module in ours.named_modules():
        if isinstance(module, Router):
            module.register_forward_hook(note(name.split(".")[0]))
    with torch.no_grad():
        theirs = switch.train()(**row, output_router_logits=True)
        mine = ours.train()(**row)
    loss = mine.cross_entropy
    for stack, layers in seen.items():
        probs_NE = torch.cat([scored.scores_TE for scored, _ in layers])
        logits_NE = torch.cat([scored.logits_TE for scored, _ in layers])
        expert_N = torch.cat([chosen_experts(routing)[:, 0] for _, routing in layers])
        assert (expert_N < 0).any()
        load_E = torch.bincount(expert_N.clamp(min=0), minlength=4) / len(expert_N)
        balance = 4 * (load_E * probs_NE.mean(0)).sum()
        z = logits_NE.logsumexp(-1).square().mean()
        torch.testing.assert_close(balance, getattr(theirs, f"{stack}_aux_loss"))
        torch.testing.assert_close(z, getattr(theirs, f"{stack}_z_loss"), atol=1e-5, rtol=1e-5)
        loss = loss + switch.config.router_aux_loss_coef * balance
        loss = loss + switch.config.router_z_loss_coef * z
    torch.testing.assert_close(loss, theirs.loss, atol=1e-5, rtol=1e-5)


def test_cached_steps_equal_switch_at_every_step(pair, batch):
    """Without binding capacity: where it binds, theirs disagrees with its own teacher forcing."""
    switch, ours = pair
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    ids = torch.randint(2, 61, (3, 6), generator=torch.Generator().manual_seed(2))
    cache = None
    with torch.no_grad():
        whole = switch(**inputs, decoder_input_ids=ids).logits
        for step in range(ids.shape[1]):
            output = ours(
                **inputs,
                decoder_input_ids=ids[:, step : step + 1],
                past_key_values=cache,
                use_cache=True,
            )
            cache = output.past_key_values
            torch.testing.assert_close(output.logits[:, 0], whole[:, step], atol=1e-5, rtol=1e-5)


def test_packed_rows_equal_what_switch_makes_of_each_sequence_alone(pair):
    switch, ours = pair
    generator = torch.Generator().manual_seed(3)
    lengths = torch.tensor([(5, 3), (4, 6), (7, 2)])
    pairs = [
        [torch.randint(2, 61, (length,), generator=generator) for length in row]
        for row in lengths.tolist()
    ]
    sources, targets = zip(*pairs, strict=True)
    number = torch.arange(1, 4)
    with torch.no_grad():
        packed = ours(
            input_ids=torch.cat(sources)[None],
            labels=torch.cat(targets)[None],
            encoder_segments=number.repeat_interleave(lengths[:, 0])[None],
            decoder_segments=number.repeat_interleave(lengths[:, 1])[None],
        )
        alone = [switch(input_ids=x[None], labels=y[None]).logits[0] for x, y in pairs]
    torch.testing.assert_close(packed.logits[0], torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_beam_search_equals_switch(pair, batch):
    switch, ours = pair
    arguments = {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "max_new_tokens": 8,
        "num_beams": 3,
        "no_repeat_ngram_size": 2,
    }
    assert torch.equal(ours.generate(**arguments), switch.generate(**arguments))
