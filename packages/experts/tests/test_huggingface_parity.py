"""The whole sparse layer against Hugging Face's Switch block, where transformers is installed.

Releases 5.0 to 5.17 of transformers never apply the capacity, and are skipped.
"""

import pytest
import torch

from flan_moe.experts import Experts, SparseFeedForward
from flan_moe.routing import Router, RouterConfig

transformers = pytest.importorskip(
    "transformers", reason="transformers is only needed to compare with its Switch block"
)
version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
if (5, 0) <= version < (5, 18):
    pytest.skip("Switch routing is broken in transformers 5.0 to 5.17", allow_module_level=True)

from transformers.models.switch_transformers.modeling_switch_transformers import (  # noqa: E402
    SwitchTransformersConfig,
    SwitchTransformersSparseMLP,
)


@pytest.mark.parametrize("num_experts", [1, 2, 7])
@pytest.mark.parametrize("factor", [None, 0.5])
def test_outputs_and_gradients_equal_the_switch_block(num_experts, factor):
    torch.manual_seed(0)
    tokens, d_model, d_ff = 50, 16, 24
    config = RouterConfig(num_experts=num_experts, capacity_factor=factor, min_capacity=1)
    ours = SparseFeedForward(
        Router(config, d_model), Experts(num_experts, d_model, d_ff, activation="relu")
    )
    torch.nn.init.normal_(ours.router.weight)
    theirs = SwitchTransformersSparseMLP(
        SwitchTransformersConfig(
            hidden_size=d_model,
            d_model=d_model,
            d_ff=d_ff,
            num_experts=num_experts,
            expert_capacity=ours.router.capacity(tokens) or tokens,
            router_jitter_noise=0.0,
            dropout_rate=0.0,
        )
    )
    pairs = [(theirs.router.classifier.weight, lambda module: module.router.weight)]
    for e in range(num_experts):
        expert = theirs.experts[f"expert_{e}"]
        pairs.append((expert.wi.weight, lambda module, e=e: module.experts.wi[e].T))
        pairs.append((expert.wo.weight, lambda module, e=e: module.experts.wo[e].T))
    with torch.no_grad():
        for parameter, mine in pairs:
            parameter.copy_(mine(ours))

    x_TD, dy_TD = torch.randn(2, tokens, d_model).unbind()
    our_x, their_x = x_TD.clone().requires_grad_(), x_TD.clone().requires_grad_()
    y_TD, routing = ours(our_x)
    out = theirs(their_x[None])  # with the router's tuple before transformers 5
    their_y = (out[0] if isinstance(out, tuple) else out)[0]
    if factor is not None:
        assert float(routing.stats["dropped_fraction"]) > 0.3
    torch.testing.assert_close(y_TD, their_y, rtol=1e-5, atol=1e-5)

    y_TD.backward(dy_TD)
    their_y.backward(dy_TD)
    torch.testing.assert_close(our_x.grad, their_x.grad, rtol=1e-4, atol=1e-5)
    gradients = SparseFeedForward(
        Router(config, d_model), Experts(num_experts, d_model, d_ff, activation="relu")
    )
    with torch.no_grad():
        for holder, parameter in zip(gradients.parameters(), ours.parameters(), strict=True):
            holder.copy_(parameter.grad)
    for parameter, mine in pairs:
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(mine(gradients), expected, rtol=1e-4, atol=1e-5)
