import math

import pytest
import torch

from flan_moe.experts import Experts
from flan_moe.model import FlanMoEForConditionalGeneration, flan_moe_config

D, K, H, F = 64, 16, 4, 128


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    config = flan_moe_config(
        "flan-moe-tiny", d_model=D, d_kv=K, num_heads=H, d_ff=F, initializer_factor=0.5
    )
    return dict(FlanMoEForConditionalGeneration(config).named_parameters())


@pytest.mark.parametrize(
    ("name", "std"),
    [
        ("shared.weight", 1.0),
        ("lm_head.weight", D**-0.5),
        ("encoder.position_bias.weight", D**-0.5),
        ("encoder.layers.0.self_attention.q.weight", (D * K) ** -0.5),
        ("decoder.layers.1.cross_attention.k.weight", D**-0.5),
        ("decoder.layers.1.cross_attention.v.weight", D**-0.5),
        ("decoder.layers.1.cross_attention.o.weight", (H * K) ** -0.5),
        ("decoder.layers.0.feed_forward.wi.weight", D**-0.5),
        ("decoder.layers.0.feed_forward.wo.weight", F**-0.5),
        ("encoder.layers.1.feed_forward.experts.wi", D**-0.5),
        ("encoder.layers.1.feed_forward.experts.wo", F**-0.5),
        ("encoder.layers.1.feed_forward.router.weight", 2 * 0.02),  # unaffected by the factor
    ],
)
def test_standard_deviations(weights, name, std):
    weight = weights[name]
    tolerance = 4 / math.sqrt(2 * weight.numel())  # four standard errors
    assert weight.std().item() == pytest.approx(0.5 * std, rel=tolerance)
    assert abs(weight.mean().item()) < 0.5 * std * 5 / math.sqrt(weight.numel())


def test_norms_start_at_the_factor(weights):
    norms = [weight for name, weight in weights.items() if "norm" in name]
    assert len(norms) == 2 * 2 + 2 * 3 + 2
    assert all((norm == 0.5).all() for norm in norms)


def test_experts_start_as_they_initialise_themselves(weights):
    torch.manual_seed(1)
    experts = Experts(4, D, F, activation="geglu")
    experts.reset_parameters(0.5)
    for name in ("wi", "wo"):
        ours = weights[f"encoder.layers.1.feed_forward.experts.{name}"]
        assert ours.std().item() == pytest.approx(getattr(experts, name).std().item(), rel=0.05)


@pytest.mark.parametrize("tied", [False, True])
def test_initial_loss_is_near_uniform(tied, batch):
    torch.manual_seed(0)
    config = flan_moe_config("flan-moe-tiny", d_model=D, tie_word_embeddings=tied)
    loss = FlanMoEForConditionalGeneration(config)(**batch).cross_entropy
    assert loss.item() == pytest.approx(math.log(512), abs=1.2)
