"""With Switch routing, logits and losses equal transformers' SwitchTransformers, with drops too."""

import pytest
import torch
import transformers
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

from flan_moe.model import FlanMoEConfig

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
