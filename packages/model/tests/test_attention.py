import math

import pytest
import torch

from flan_moe.model import attention
from flan_moe.model.attention import KeysAndValues, attend, attention_bias, choose_backend


def reference(q, k, v, bias):
    """Loops in float64."""
    batch, heads, length, _ = q.shape
    out = torch.zeros(batch, length, heads, v.shape[-1], dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for i in range(length):
                scores = [
                    float(q[b, h, i].double() @ k[b, h, j].double()) + float(bias[b, h, i, j])
                    for j in range(k.shape[2])
                ]
                top = max(scores)
                weights = [math.exp(score - top) for score in scores]
                for j, weight in enumerate(weights):
                    out[b, i, h] += weight / sum(weights) * v[b, h, j].double()
    return out.flatten(2)


def test_attention_is_unscaled_softmax_with_an_additive_bias():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 5, 8), torch.randn(2, 3, 5, 8)
    position_bias = torch.randn(1, 3, 4, 5)
    allowed = torch.rand(2, 1, 4, 5) > 0.4
    allowed[..., 0] = True
    bias = attention_bias(position_bias, allowed, q)
    out = attend(q, KeysAndValues(k, v), bias, backend="sdpa")
    masked = position_bias.expand(2, -1, -1, -1).masked_fill(~allowed, -math.inf)
    torch.testing.assert_close(out.double(), reference(q, k, v, masked), atol=1e-5, rtol=1e-5)


def test_rows_that_see_nothing_stay_finite_forward_and_backward():
    q, k, v = (torch.randn(1, 2, 3, 8, requires_grad=True) for _ in range(3))
    position_bias = torch.randn(1, 2, 3, 3, requires_grad=True)
    allowed = torch.tensor([[True, False, False], [False] * 3, [True] * 3])
    out = attend(q, KeysAndValues(k, v), attention_bias(position_bias, allowed, q))
    out[:, [0, 2]].sum().backward()
    for tensor in (out, q.grad, k.grad, v.grad, position_bias.grad):
        assert tensor.isfinite().all()
    assert not position_bias.grad[:, :, 1].any()


def test_without_bias_and_mask_there_is_no_bias():
    assert attention_bias(None, None, torch.zeros(1)) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bias_follows_autocast(dtype):
    position_bias = torch.randn(1, 2, 3, 3)
    with torch.autocast("cpu", dtype=dtype):
        bias = attention_bias(position_bias, torch.ones(3, 3, dtype=torch.bool), torch.zeros(1))
    assert bias.dtype == dtype


def test_gradients_of_bias_queries_keys_and_values_are_those_of_the_formula():
    """Softmax written out in float64 with its own derivative; SDPA's is that of fused kernels."""
    torch.manual_seed(0)
    shape = {"requires_grad": True}
    q, k, v = (torch.randn(2, 3, length, 8, **shape) for length in (4, 5, 5))
    position_bias = torch.randn(1, 3, 4, 5, requires_grad=True)
    allowed = torch.rand(2, 1, 4, 5) > 0.4
    allowed[..., 0] = True
    grad = torch.randn(2, 4, 24)
    bias = attention_bias(position_bias, allowed, q)
    attend(q, KeysAndValues(k, v), bias, backend="sdpa").backward(grad)

    q64, k64, v64, bias64 = (x.detach().double() for x in (q, k, v, position_bias))
    scores = (torch.einsum("bhik,bhjk->bhij", q64, k64) + bias64).masked_fill(~allowed, -math.inf)
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    dout = grad.double().unflatten(2, (3, 8)).transpose(1, 2)
    dweights = torch.einsum("bhik,bhjk->bhij", dout, v64)
    dscores = weights * (dweights - (weights * dweights).sum(-1, keepdim=True))
    expected = {
        position_bias: dscores.sum(0, keepdim=True),
        q: torch.einsum("bhij,bhjk->bhik", dscores, k64),
        k: torch.einsum("bhij,bhik->bhjk", dscores, q64),
        v: torch.einsum("bhij,bhik->bhjk", weights, dout),
    }
    for leaf, gradient in expected.items():
        torch.testing.assert_close(leaf.grad.double(), gradient, atol=1e-5, rtol=1e-5)


def test_xformers_is_chosen_where_it_has_a_kernel(monkeypatch):
    monkeypatch.setattr(attention, "_has_xformers", lambda: True)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert choose_backend("cuda", dtype, 64) == "xformers"
    assert choose_backend("cuda", torch.float64, 64) == "sdpa"
    assert choose_backend("cuda", torch.float32, 12) == "sdpa"
    assert choose_backend("cpu", torch.float32, 64) == "sdpa"
    monkeypatch.setattr(attention, "_has_xformers", lambda: False)
    assert choose_backend("cuda", torch.float32, 64) == "sdpa"
