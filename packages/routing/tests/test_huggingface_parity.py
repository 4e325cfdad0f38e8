"""Routers against transformers' own modules, where transformers is installed.

Compared with 4.57.6 and 5.23: rows and indices exactly; weights, logits and losses to 1e-6
(rounding). Skipped: Switch of 5.0 to 5.17, which never applies its capacity, and NLLB-MoE of 5.0
and later, which uses two experts only. Capacity of Hugging Face's Switch is per sequence: with one
sequence the conventions meet.
"""

import pytest
import torch
from small_routers import dense_weights
from torch import nn

from flan_moe.routing import RouterConfig, balance_loss, build_router, z_loss

transformers = pytest.importorskip(
    "transformers", reason="transformers is only needed to compare with its routers"
)
VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
models = transformers.models

T, D, E = 40, 16, 8
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def make(name, **options):
    """Our router with decided logits, and tokens for it."""
    torch.manual_seed(0)
    router = build_router(RouterConfig(name=name, num_experts=E, **options), D)
    nn.init.normal_(router.weight)
    return router, torch.randn(T, D)


class Marker(nn.Module):
    """An expert whose output names it: the combined output of a block is its dispatch weights."""

    def __init__(self, expert):
        super().__init__()
        self.expert = expert

    def forward(self, x_TD):
        return nn.functional.one_hot(torch.tensor(self.expert), D).float().expand(len(x_TD), -1)


def dispatched(block, x_TD):
    """(T, E) combine weights and the router logits of a block whose experts are markers."""
    output, logits = block(x_TD[None])
    return output[0, :, :E], logits


@pytest.mark.skipif((5, 0) <= VERSION < (5, 18), reason="Switch is broken in these releases")
@pytest.mark.parametrize("factor", [None, 0.5, 1.25])
def test_switch(factor):
    switch = pytest.importorskip(
        "transformers.models.switch_transformers.modeling_switch_transformers"
    )
    router, x_TD = make("switch", capacity_factor=factor, min_capacity=1)
    config = transformers.SwitchTransformersConfig(
        hidden_size=D,
        d_model=D,
        num_experts=E,
        expert_capacity=router.capacity(T) or T,
        router_jitter_noise=0.0,
    )
    theirs = switch.SwitchTransformersTop1Router(config)
    with torch.no_grad():
        theirs.classifier.weight.copy_(router.weight)
    routing = router(x_TD)
    mask_TE, prob_T1, logits_TE = (part[0].detach() for part in theirs(x_TD[None]))
    if factor == 0.5:
        assert float(routing.stats["dropped_fraction"]) > 0.2
    torch.testing.assert_close(router.logits(x_TD), logits_TE, **CLOSE)
    ours_TE = dense_weights(routing).float().detach()
    assert torch.equal(ours_TE > 0, mask_TE > 0)
    torch.testing.assert_close(ours_TE, mask_TE * prob_T1, **CLOSE)
    torch.testing.assert_close(
        routing.losses["z"], switch.router_z_loss_func(logits_TE[None]), **CLOSE
    )
    # Theirs counts after capacity, a dropped token as a choice of expert 0; ours counts before.
    probs_TE = logits_TE.softmax(dim=-1)
    theirs_after = switch.load_balancing_loss_func(probs_TE[None], mask_TE.argmax(-1)[None])
    after = balance_loss(probs_TE, mask_TE.argmax(-1, keepdim=True), normalisation="one")
    torch.testing.assert_close(after, theirs_after, **CLOSE)
    theirs_before = switch.load_balancing_loss_func(probs_TE[None], probs_TE.argmax(-1)[None])
    torch.testing.assert_close(routing.losses["balance"], theirs_before, **CLOSE)


@pytest.mark.skipif(VERSION >= (5, 0), reason="NLLB-MoE is broken in transformers 5")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("order", ["choice", "priority"])
@pytest.mark.parametrize("before", [True, False])
def test_nllb_top_2(training, order, before):
    nllb = pytest.importorskip("transformers.models.nllb_moe.modeling_nllb_moe")
    renormalise = "before_drop" if before else "after_drop"
    router, x_TD = make("nllb", drop_order=order, renormalise=renormalise)
    config = transformers.NllbMoeConfig(
        d_model=D,
        num_experts=E,
        expert_capacity=None,
        batch_prioritized_routing=order == "priority",
        normalize_router_prob_before_dropping=before,
        second_expert_policy="all",
        moe_eval_capacity_token_fraction=1.0,
    )
    theirs = nllb.NllbMoeTop2Router(config).train(training)
    with torch.no_grad():
        theirs.classifier.weight.copy_(router.weight)
        first_TE, weight_TE = theirs(x_TD[None])
        routing = router.train(training)(x_TD)
    if training:
        assert router.capacity(T) == theirs.expert_capacity == 2 * -(-T // E)
        assert (first_TE.sum(-1) == 0).any() or (weight_TE > 0).sum() < 2 * T, "the case must drop"
    torch.testing.assert_close(dense_weights(routing).float(), weight_TE, **CLOSE)
    # Their loss is on combine weights after routing, where ours is on the softmax.
    loss = balance_loss(weight_TE, first_TE.argmax(-1, keepdim=True), normalisation="one")
    theirs_loss = nllb.load_balancing_loss_func(weight_TE[None], first_TE.argmax(-1)[None])
    torch.testing.assert_close(loss, theirs_loss, **CLOSE)


FAMILY = {
    "mixtral": ("Mixtral", {"num_local_experts": E, "num_experts_per_tok": 2}, {}),
    "olmoe": ("Olmoe", {"num_experts": E, "num_experts_per_tok": 3}, {"top_k": 3}),
    "qwen3": (
        "Qwen3Moe",
        {"num_experts": E, "num_experts_per_tok": 4, "norm_topk_prob": True},
        {"top_k": 4},
    ),
}


def their_choice(gate, *inputs):
    """(T, E) combine weights of a router module that returns its choice, from transformers 5 on."""
    logits_TE, weight_TK, expert_TK = gate(*inputs)
    return torch.zeros(T, E).scatter(1, expert_TK, weight_TK.float()), logits_TE


@pytest.mark.parametrize("name", FAMILY)
def test_the_mixtral_family(name):
    prefix, their_options, our_options = FAMILY[name]
    package = name if name != "qwen3" else "qwen3_moe"
    module = pytest.importorskip(f"transformers.models.{package}.modeling_{package}")
    router, x_TD = make(name, **our_options)
    config = getattr(transformers, f"{prefix}Config")(
        hidden_size=D, intermediate_size=8, moe_intermediate_size=8, **their_options
    )
    with torch.no_grad():
        if VERSION < (5, 0):
            block = getattr(module, f"{prefix}SparseMoeBlock")(config)
            block.experts = nn.ModuleList(Marker(expert) for expert in range(E))
            block.gate.weight.copy_(router.weight)
            weight_TE, logits_TE = dispatched(block, x_TD)
        else:
            gate = getattr(module, f"{prefix}TopKRouter")(config)
            gate.weight.copy_(router.weight)
            weight_TE, logits_TE = their_choice(gate, x_TD)
        routing = router(x_TD)
    torch.testing.assert_close(router.logits(x_TD), logits_TE, **CLOSE)
    torch.testing.assert_close(dense_weights(routing).float(), weight_TE, **CLOSE)
    k = router.config.top_k
    theirs = module.load_balancing_loss_func((logits_TE,), E, k)
    ours = routing.losses["balance"] * (k if name == "olmoe" else 1)  # OLMoE's own divides by k
    torch.testing.assert_close(ours, theirs, **CLOSE)
    torch.testing.assert_close(routing.losses["z"], z_loss(logits_TE), **CLOSE)


@pytest.mark.parametrize("normalise", [True, False])
def test_deepseek_v3(normalise):
    module = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
    router, x_TD = make(
        "deepseek_v3",
        num_groups=4,
        top_groups=2,
        top_k=3,
        renormalise="before_drop" if normalise else "never",
    )
    config = transformers.DeepseekV3Config(
        hidden_size=D,
        n_routed_experts=E,
        num_experts_per_tok=3,
        n_group=4,
        topk_group=2,
        norm_topk_prob=normalise,
        routed_scaling_factor=2.5,
    )
    theirs = module.DeepseekV3TopkRouter(config)
    # Not negative: transformers 4 sets the scores of losing groups to 0, where others exclude them.
    bias_E = torch.rand(E)
    with torch.no_grad():
        theirs.weight.copy_(router.weight)
        theirs.e_score_correction_bias.copy_(bias_E)
        router.selection_bias_E.copy_(bias_E)
        if VERSION < (5, 0):
            expert_TK, weight_TK = theirs(x_TD)
            weight_TE = torch.zeros(T, E).scatter(1, expert_TK, weight_TK)
        else:
            weight_TE, _ = their_choice(theirs, x_TD)
        routing = router(x_TD)
    torch.testing.assert_close(dense_weights(routing).float(), weight_TE, **CLOSE)


@pytest.mark.parametrize("by_hash", [False, True])
def test_deepseek_v4(by_hash):
    module = pytest.importorskip(
        "transformers.models.deepseek_v4.modeling_deepseek_v4", reason="transformers 5 has it"
    )
    name = "deepseek_v4_hash" if by_hash else "deepseek_v4"
    router, x_TD = make(name, top_k=3, **({"vocab_size": 50} if by_hash else {}))
    config = transformers.DeepseekV4Config(
        hidden_size=D, n_routed_experts=E, num_experts_per_tok=3, vocab_size=50
    )
    assert router.config.weight_scale == config.routed_scaling_factor
    ids_T = torch.randint(50, (T,))
    with torch.no_grad():
        if by_hash:
            theirs, inputs = module.DeepseekV4HashRouter(config), (x_TD, ids_T)
            theirs.tid2eid.copy_(router.token_expert_VK)
        else:
            theirs, inputs = module.DeepseekV4TopKRouter(config), (x_TD,)
            theirs.e_score_correction_bias.copy_(torch.rand(E))
            router.selection_bias_E.copy_(theirs.e_score_correction_bias)
        theirs.weight.copy_(router.weight)
        weight_TE, _ = their_choice(theirs, *inputs)
        routing = router(x_TD, token_id_T=ids_T)
    torch.testing.assert_close(dense_weights(routing).float(), weight_TE, **CLOSE)
