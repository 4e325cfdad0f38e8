"""xformers computes what SDPA computes, forward and backward. Needs a CUDA device."""

import pytest
import torch

from flan_moe.model.attention import KeysAndValues, attend, attention_bias

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="xformers has no CPU kernel"),
]

TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 3e-2, torch.float16: 5e-3}


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("length", "key_length"), [(16, 16), (13, 13), (1, 7), (9, 21)])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("d_kv", [32, 64, 128])
def test_xformers_equals_sdpa(dtype, length, key_length, masked, d_kv):
    pytest.importorskip("xformers")
    torch.manual_seed(0)
    shape = {"device": "cuda", "dtype": dtype}
    q = torch.randn(3, 2, length, d_kv, **shape) * 0.3
    k = torch.randn(3, 2, key_length, d_kv, **shape) * 0.3
    v = torch.randn(3, 2, key_length, d_kv, **shape)
    position_bias = torch.randn(1, 2, length, key_length, **shape)
    allowed = None
    if masked:
        allowed = torch.rand(3, 1, length, key_length, device="cuda") > 0.3
        allowed[..., 0] = True
    grad = torch.randn(3, length, 2 * d_kv, **shape)
    results = {}
    for backend in ("sdpa", "xformers"):
        leaves = [x.clone().requires_grad_() for x in (q, k, v, position_bias)]
        bias = attention_bias(leaves[3], allowed, leaves[0])
        out = attend(leaves[0], KeysAndValues(*leaves[1:3]), bias, backend=backend)
        out.backward(grad)
        results[backend] = [out.detach(), *(leaf.grad for leaf in leaves)]
    for x, y in zip(results["xformers"], results["sdpa"], strict=True):
        torch.testing.assert_close(x, y, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("length", [1, 6])
def test_a_mask_of_keys_alone_is_spread_over_heads_and_queries(dtype, length):
    """Cross-attention: no position bias, strides of 0 in two dimensions."""
    pytest.importorskip("xformers")
    torch.manual_seed(0)
    shape = {"device": "cuda", "dtype": dtype}
    q = torch.randn(3, 2, length, 64, **shape) * 0.3
    k, v = (torch.randn(3, 2, 11, 64, **shape) * 0.3 for _ in range(2))
    allowed = torch.rand(3, 1, 1, 11, device="cuda") > 0.3
    allowed[..., 0] = True
    results = []
    for backend in ("sdpa", "xformers"):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        bias = attention_bias(None, allowed, leaves[0])
        out = attend(leaves[0], KeysAndValues(*leaves[1:]), bias, backend=backend)
        out.square().sum().backward()
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_float64_falls_to_sdpa_which_has_a_kernel_for_it():
    q, k, v = (torch.randn(1, 2, 3, 8, device="cuda", dtype=torch.float64) for _ in range(3))
    found = attend(q, KeysAndValues(k, v), None)
    expected = attend(q.cpu(), KeysAndValues(k.cpu(), v.cpu()), None)
    torch.testing.assert_close(found.cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_model_loss_and_gradients_agree(sparse_model, batch, dtype):
    pytest.importorskip("xformers")
    model = sparse_model(seed=1, dtype=torch.float32).to("cuda")
    inputs = {name: tensor.to("cuda") for name, tensor in batch.items()}
    losses, grads = [], []
    for backend in ("sdpa", "xformers"):
        model.set_attention_backend(backend)
        model.zero_grad()
        with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
            loss = model(**inputs).loss
        loss.backward()
        losses.append(loss.detach())
        grads.append(model.encoder.position_bias.weight.grad.clone())
    torch.testing.assert_close(losses[1], losses[0], atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(grads[1], grads[0], atol=2e-2, rtol=5e-2)
