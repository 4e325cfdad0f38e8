"""Lasting gradient buffers hold what autograd would have returned, and nothing is lost."""

import pytest
import torch

from flan_moe.experts import Experts, ExpertWeights, MainGrads, SparseFeedForward, expert_ffn
from flan_moe.routing import RouterConfig, build_router

D_MODEL, D_FF, EXPERTS, TOKENS = 8, 12, 6, 9


def make_layer():
    torch.manual_seed(0)
    router = build_router(RouterConfig(num_experts=EXPERTS, capacity_factor=None), D_MODEL)
    return SparseFeedForward(router, Experts(EXPERTS, D_MODEL, D_FF, activation="geglu"))


def batches(steps=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(steps, 2, TOKENS, D_MODEL, generator=generator)


@pytest.mark.parametrize("accumulate", [True, False])
def test_training_is_the_same_bit_for_bit(accumulate):
    plain, reserved = make_layer(), make_layer()
    reserved.experts.reserve_gradients(accumulate=accumulate)
    optimizers = [torch.optim.AdamW(layer.parameters()) for layer in (plain, reserved)]
    addresses = [p.grad.data_ptr() for p in (reserved.experts.wi, reserved.experts.wo)]
    for x_TD, dy_TD in batches():
        for layer, optimizer in zip((plain, reserved), optimizers, strict=True):
            optimizer.zero_grad(set_to_none=layer is plain)
            layer(x_TD)[0].backward(dy_TD)
            optimizer.step()
    for ours, expected in zip(reserved.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, expected)
    assert addresses == [p.grad.data_ptr() for p in (reserved.experts.wi, reserved.experts.wo)]


def test_accumulation_adds_and_overwriting_does_not():
    x_TD, dy_TD = batches(1)[0]
    once = make_layer()
    once(x_TD)[0].backward(dy_TD)
    for accumulate, factor in ((True, 2.0), (False, 1.0)):
        layer = make_layer()
        layer.experts.reserve_gradients(accumulate=accumulate)
        for _ in range(2):
            layer(x_TD)[0].backward(dy_TD)
        torch.testing.assert_close(layer.experts.wi.grad, factor * once.experts.wi.grad)
        torch.testing.assert_close(layer.experts.wo.grad, factor * once.experts.wo.grad)


def test_overwriting_clears_experts_that_lost_their_rows():
    layer = make_layer()
    layer.experts.reserve_gradients(accumulate=False)
    x_TD, dy_TD = batches(1)[0]
    for expert in (2, 4):
        forced = torch.full((TOKENS, 1), expert)
        layer(x_TD, forced_experts=forced)[0].backward(dy_TD)
    norms = layer.experts.wo.grad.flatten(1).norm(dim=1)
    assert norms[4] > 0
    assert norms.count_nonzero() == 1


def test_bfloat16_weights_accumulate_in_float32():
    layer = make_layer().bfloat16()
    layer.experts.reserve_gradients(accumulate=True)
    x_TD, dy_TD = batches(1)[0].bfloat16()
    for _ in range(300):
        layer(x_TD)[0].backward(dy_TD)
    assert layer.experts.wi.grad is None
    total = layer.experts.wi.main_grad.clone()
    layer.experts.wi.main_grad.zero_()
    layer(x_TD)[0].backward(dy_TD)
    # In bfloat16 a running sum stops growing at about 256 terms.
    torch.testing.assert_close(total, 300 * layer.experts.wi.main_grad, rtol=1e-4, atol=1e-4)


def test_a_buffer_that_is_no_longer_the_gradient_is_an_error():
    layer = make_layer()
    layer.experts.reserve_gradients(accumulate=True)
    layer.zero_grad()  # sets gradients to None
    with pytest.raises(RuntimeError, match=r"wi\.grad is not the buffer.*set_to_none=False"):
        layer(batches()[0, 0])
    with torch.no_grad():
        layer(batches()[0, 0])  # no gradient, nothing to lose


def test_buffers_that_do_not_fit_are_refused():
    layer = make_layer()
    x_TD = batches()[0, 0]
    routing, (wi, wo, *_) = layer.router(x_TD), layer.experts.weights
    options = {"activation": "geglu"}
    with pytest.raises(ValueError, match=r"main_grads.wi_EDH: expected \(6, 8, 24\) torch.float32"):
        expert_ffn(x_TD, routing, ExpertWeights(wi, wo), main_grads=MainGrads(wo, None), **options)
    with pytest.raises(ValueError, match="'reference' returns its gradients"):
        expert_ffn(
            x_TD,
            routing,
            ExpertWeights(wi, wo),
            main_grads=MainGrads(wi, wo),
            backend="reference",
            **options,
        )
