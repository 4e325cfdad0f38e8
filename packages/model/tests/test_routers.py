"""What a model must do for its routers: ids for hash routing, causal training, state, losses."""

import pytest
import torch

from flan_moe.model import (
    FlanMoEConfig,
    FlanMoEForConditionalGeneration,
    count_parameters,
    flan_moe_config,
    flops_per_token,
)
from flan_moe.routing import Router, RouterBalancer, RouterPreset, register_router

SMALL = {"num_experts": 4, "top_k": 2}


def model_with(**options):
    torch.manual_seed(0)
    config = flan_moe_config("flan-moe-tiny", vocab_size=61, **options)
    return FlanMoEForConditionalGeneration(config)


def some_batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "input_ids": torch.randint(2, 61, (3, 12), generator=generator),
        "labels": torch.randint(2, 61, (3, 9), generator=generator),
    }


def test_a_hash_router_sends_a_token_id_to_the_same_expert_wherever_it_stands():
    model = model_with(encoder_router={"name": "hash", "num_experts": 4})
    batch = some_batch()
    batch["attention_mask"] = torch.ones(3, 12, dtype=torch.long)
    batch["attention_mask"][1, 7:] = 0  # padding is not routed, and moves nobody
    routing = dict(model(**batch).routings)["encoder.layers.1.feed_forward"]
    table_VK = model.encoder.layers[1].feed_forward.router.token_expert_VK
    ids_T = batch["input_ids"][batch["attention_mask"] > 0]
    expert_R = torch.repeat_interleave(routing.expert_offsets.diff())
    assert torch.equal(table_VK[ids_T[routing.row_token_R.long()], 0].long(), expert_R)


class ByParity(Router):
    """A router from outside: even token ids to expert 0, odd ones to expert 1."""

    def select_experts(self, scores_TE, logits_TE, token_id_T):
        return (token_id_T % 2)[:, None]


def test_a_router_from_outside_is_given_the_token_ids(monkeypatch):
    monkeypatch.setattr("flan_moe.routing.registry._registered", {})
    register_router("by_parity", RouterPreset(router=ByParity))
    model = model_with(encoder_router={"name": "by_parity", "num_experts": 4})
    batch = some_batch()
    routing = dict(model(**batch).routings)["encoder.layers.1.feed_forward"]
    odd = int((batch["input_ids"] % 2).sum())
    assert routing.stats["expert_load_E"].tolist() == [36 - odd, odd, 0, 0]


def test_a_hash_router_is_saved_with_its_table_and_costs_no_logits(tmp_path):
    model = model_with(decoder_router={"name": "hash", "num_experts": 4, "hash_seed": 5}).eval()
    model.decoder.layers[1].feed_forward.router.token_expert_VK.fill_(3)
    model.save_pretrained(tmp_path)
    again = FlanMoEForConditionalGeneration.from_pretrained(tmp_path)
    assert (again.decoder.layers[1].feed_forward.router.token_expert_VK == 3).all()
    with torch.no_grad():
        torch.testing.assert_close(again(**some_batch()).logits, model(**some_batch()).logits)
    learned = model_with(decoder_router={"name": "switch", "num_experts": 4}).config
    saved = flops_per_token(learned).decoder - flops_per_token(model.config).decoder
    assert saved == 2 * 32 * 4, "one layer's logits"
    assert count_parameters(learned).router - count_parameters(model.config).router == 32 * 4
    tokens = model.generate(some_batch()["input_ids"], max_new_tokens=4, do_sample=False)
    assert tokens.shape[0] == 3


def test_hash_routing_of_embeddings_is_refused():
    model = model_with(encoder_router={"name": "hash", "num_experts": 4})
    embeds = model.shared(some_batch()["input_ids"])
    with pytest.raises(ValueError, match="token_id_T is None; hash routing needs the token ids"):
        model(inputs_embeds=embeds, labels=some_batch()["labels"])


@pytest.mark.parametrize("preset", ["flan-moe-tiny", "flan-ec-small", "flan-gs-small"])
def test_decoders_are_causal_in_training_too_where_experts_are_full(preset):
    """An id of the future changes no logit of the past, although tokens are dropped."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 4}
    dropless = {"dropout_rate": 0.0, "expert_dropout_rate": 0.0}
    config = flan_moe_config(preset, **sizes, num_heads=4, **dropless)
    # The capacity itself depends on the number of tokens, which does not change here.
    config.decoder_router |= {"num_experts": 4, "capacity_factor": 1e-3, "min_capacity": 5}
    model = FlanMoEForConditionalGeneration(FlanMoEConfig.from_dict(config.to_dict())).train()
    ids = torch.randint(2, 61, (1, 12))
    decoder = torch.randint(2, 61, (1, 20))
    changed = decoder.clone()
    changed[:, 11:] = torch.randint(2, 61, (1, 9))
    with torch.no_grad():
        before = model(input_ids=ids, decoder_input_ids=decoder)
        after = model(input_ids=ids, decoder_input_ids=changed)
    routing = next(r for name, r in before.routings if name.startswith("decoder"))
    assert routing.num_rows == 4 * 5 or float(routing.stats["dropped_fraction"]) > 0
    torch.testing.assert_close(before.logits[:, :11], after.logits[:, :11], rtol=1e-5, atol=1e-5)


def test_selection_biases_are_learned_and_saved(tmp_path):
    model = model_with(encoder_router={"name": "deepseek_v4", **SMALL}).train()
    balancer = RouterBalancer(model)
    output = model(**some_batch())
    output.loss.backward()
    balancer.observe(output.routings)
    balancer.step()
    bias_E = model.encoder.layers[1].feed_forward.router.selection_bias_E
    assert bias_E.abs().sum() > 0
    model.save_pretrained(tmp_path)
    again = FlanMoEForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(again.encoder.layers[1].feed_forward.router.selection_bias_E, bias_E)


def test_extra_losses_enter_the_loss_with_their_coefficients():
    router = {"name": "top_k", **SMALL, "noise": 0.1, "extra_losses": ["importance", "load"]}
    model = model_with(
        encoder_router=router,
        decoder_router=router,
        balance_coef=0.0,
        importance_coef=0.5,
        load_coef=0.25,
    ).train()
    output = model(**some_batch())
    aux = output.aux_losses
    expected = output.cross_entropy + 0.5 * aux["importance"] + 0.25 * aux["load"]
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"importance_coef": 0.1}, "importance_coef=0.1: expected 0 unless a router has 'import"),
        ({"load_coef": -1}, "load_coef=-1: expected a number that is not negative"),
        (
            {"decoder_router": {"name": "flaxformer_top2"}},
            "decoder_router.name='flaxformer_top2': expected a causal router",
        ),
        (
            {"encoder_router": {"name": "hash", "vocab_size": 60}},
            "encoder_router.vocab_size=60: expected at least vocab_size, which is 61",
        ),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        model_with(**options)
