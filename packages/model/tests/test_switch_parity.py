"""With Switch routing and no drops, logits equal transformers' SwitchTransformers."""

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


@pytest.fixture
def pair(with_weights_of):
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
            expert_capacity=64,  # per row and expert; rows have at most 11 tokens
            router_jitter_noise=0.0,
            decoder_start_token_id=0,
        )
    ).eval()
    for module in theirs.modules():
        if type(module).__name__ == "SwitchTransformersTop1Router":
            torch.nn.init.normal_(module.classifier.weight, std=0.3)  # use all experts
    router = {"name": "switch", "num_experts": 4}
    config = FlanMoEConfig(
        **sizes,
        num_layers=4,
        activation="relu",
        tie_word_embeddings=True,
        encoder_router=router,
        decoder_router=router,
    )
    return theirs, with_weights_of(config, theirs)


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
