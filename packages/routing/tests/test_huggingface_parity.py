"""The Switch router against Hugging Face's, where transformers is installed.

Releases 5.0 to 5.17 of transformers never apply the capacity, and are skipped. Others count
capacity per sequence; one sequence makes the two conventions meet.
"""

import pytest
import torch

from flan_moe.routing import Router, RouterConfig

transformers = pytest.importorskip(
    "transformers", reason="transformers is only needed to compare with its Switch router"
)
version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
if (5, 0) <= version < (5, 18):
    pytest.skip("Switch routing is broken in transformers 5.0 to 5.17", allow_module_level=True)

from transformers.models.switch_transformers.modeling_switch_transformers import (  # noqa: E402
    SwitchTransformersConfig,
    SwitchTransformersTop1Router,
)


@pytest.mark.parametrize("factor", [None, 0.5, 1.25])
def test_switch_routes_as_huggingface_does(factor):
    torch.manual_seed(0)
    tokens, d_model, num_experts = 40, 16, 5
    router = Router(
        RouterConfig(num_experts=num_experts, capacity_factor=factor, min_capacity=1), d_model
    )
    torch.nn.init.normal_(router.weight)
    capacity = router.capacity(tokens) or tokens
    theirs = SwitchTransformersTop1Router(
        SwitchTransformersConfig(
            hidden_size=d_model,
            d_model=d_model,
            num_experts=num_experts,
            expert_capacity=capacity,
            router_jitter_noise=0.0,
        )
    )
    with torch.no_grad():
        theirs.classifier.weight.copy_(router.weight)
    x_TD = torch.randn(tokens, d_model)

    routing = router(x_TD)
    mask_TE, prob_T1, logits_TE = (part[0].detach() for part in theirs(x_TD[None]))

    if factor == 0.5:
        assert float(routing.stats["dropped_fraction"]) > 0.2
    ours_TE = torch.zeros_like(mask_TE)
    expert_R = torch.repeat_interleave(routing.expert_offsets.diff())
    token_R = routing.row_token_R.long()
    ours_TE[token_R, expert_R] = 1
    assert torch.equal(ours_TE, mask_TE)
    torch.testing.assert_close(routing.row_weight_R.detach(), prob_T1[token_R, 0])
    torch.testing.assert_close(
        routing.losses["z"].detach(), logits_TE.logsumexp(dim=-1).square().mean()
    )
