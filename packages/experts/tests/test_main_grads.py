"""Lasting gradient buffers hold what autograd would have returned, and nothing is lost."""

import copy

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


@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize("overwrite_first", [True, False])
def test_buffers_come_back_after_gradients_were_set_to_none(microbatches, overwrite_first):
    plain, reserved = make_layer(), make_layer()
    optimizers = [torch.optim.AdamW(layer.parameters()) for layer in (plain, reserved)]
    addresses = set()
    for step in batches():
        for layer, optimizer in zip((plain, reserved), optimizers, strict=True):
            optimizer.zero_grad()
            for number, x_TD in enumerate(step[:microbatches]):
                if layer is reserved:
                    accumulate = number > 0 or not overwrite_first
                    layer.experts.reserve_gradients(accumulate=accumulate)
                layer(x_TD)[0].backward(step[1])
            optimizer.step()
        addresses.add(reserved.experts.wi.grad.data_ptr())
    for ours, expected in zip(reserved.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, expected)
    assert len(addresses) == 1


def test_reserving_again_keeps_what_was_not_cleared():
    layer = make_layer()
    x_TD, dy_TD = batches(1)[0]
    layer.experts.reserve_gradients(accumulate=True)
    layer(x_TD)[0].backward(dy_TD)
    before = layer.experts.wi.grad.clone()
    layer.experts.reserve_gradients(accumulate=True)
    assert torch.equal(layer.experts.wi.grad, before)
    layer.zero_grad()
    layer.experts.reserve_gradients(accumulate=True)
    assert not layer.experts.wi.grad.any()


def test_weights_of_another_dtype_get_another_buffer():
    layer = make_layer()
    layer.experts.reserve_gradients(accumulate=True)
    layer.double().zero_grad()
    layer.experts.reserve_gradients(accumulate=True)
    layer(batches()[0, 0].double())[0].sum().backward()
    assert layer.experts.wi.grad.dtype == torch.float64


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
    with pytest.raises(
        RuntimeError, match=r"wi\.grad is not the buffer.*set_to_none=False\) or reserve"
    ):
        layer(batches()[0, 0])
    with torch.no_grad():
        layer(batches()[0, 0])  # no gradient, nothing to lose


def copied(layer):
    return copy.deepcopy(layer)


def loaded_by_assignment(layer):
    layer.load_state_dict(copy.deepcopy(layer.state_dict()), assign=True)
    return layer


def with_weights_that_another_layer_reserved(layer):
    other = copy.deepcopy(layer)
    other.experts.wi, other.experts.wo = layer.experts.wi, layer.experts.wo
    other.experts.reserve_gradients(accumulate=True)
    return layer


@pytest.mark.parametrize(
    "change", [copied, loaded_by_assignment, with_weights_that_another_layer_reserved]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_lost_their_buffer_are_an_error(change, dtype):
    # In bfloat16 there is no .grad to look at: an optimizer reads main_grad.
    layer = make_layer().to(dtype)
    layer.experts.reserve_gradients(accumulate=True)
    x_TD = batches()[0, 0].to(dtype)
    with pytest.raises(RuntimeError, match=r"wi\.main_grad is not the buffer.*reserve again"):
        change(layer)(x_TD)


def test_substituted_weights_are_an_error():
    layer = make_layer().bfloat16()
    layer.experts.reserve_gradients(accumulate=True)
    others = {n: p.detach().clone().requires_grad_() for n, p in layer.named_parameters()}
    with pytest.raises(RuntimeError, match=r"wi\.main_grad is not the buffer"):
        torch.func.functional_call(layer, others, (batches()[0, 0].bfloat16(),))


def test_a_frozen_weight_stays_as_it_is_under_weight_decay():
    layer = make_layer()
    layer.experts.wi.requires_grad_(False)
    layer.experts.reserve_gradients(accumulate=False)
    before = [w.detach().clone() for w in (layer.experts.wi, layer.experts.wo)]
    layer(batches()[0, 0])[0].sum().backward()
    torch.optim.AdamW(layer.parameters(), weight_decay=0.5).step()
    assert torch.equal(layer.experts.wi, before[0])
    assert not torch.equal(layer.experts.wo, before[1])
    assert layer.experts.wi.grad is None


@pytest.mark.parametrize("accumulate", [True, False])
def test_a_compiled_layer_writes_into_the_buffers(accumulate):
    plain, reserved = make_layer(), make_layer()
    reserved.experts.reserve_gradients(accumulate=accumulate)
    compiled = torch.compile(lambda x: reserved(x)[0], fullgraph=True, backend="aot_eager")
    for x_TD, dy_TD in batches():
        if not accumulate:
            plain.zero_grad()
        plain(x_TD)[0].backward(dy_TD)
        compiled(x_TD).backward(dy_TD)
    for name in ("wi", "wo"):
        weight = getattr(reserved.experts, name)
        assert weight.grad is weight.main_grad
        torch.testing.assert_close(weight.grad, getattr(plain.experts, name).grad)


def test_buffers_that_do_not_fit_are_refused():
    layer = make_layer()
    x_TD = batches()[0, 0]
    routing, (wi, wo, *_) = layer.router(x_TD), layer.experts.weights
    options = {"activation": "geglu"}
    with pytest.raises(ValueError, match=r"main_grads.wi_EDH: expected \(6, 8, 24\) torch.float32"):
        expert_ffn(x_TD, routing, ExpertWeights(wi, wo), main_grads=MainGrads(wo, None), **options)
    shared = torch.zeros(1, 1, 1).expand_as(wi)
    with pytest.raises(ValueError, match=r"wi_EDH: expected memory of its own"):
        expert_ffn(x_TD, routing, ExpertWeights(wi, wo), main_grads=MainGrads(shared), **options)
    with pytest.raises(ValueError, match="'reference' returns its gradients"):
        expert_ffn(
            x_TD,
            routing,
            ExpertWeights(wi, wo),
            main_grads=MainGrads(wi, wo),
            backend="reference",
            **options,
        )
