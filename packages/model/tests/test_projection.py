"""Projections compute what `torch.nn.Linear` computes, from whichever side they multiply."""

import pytest
import torch

from flan_moe.model import projection
from flan_moe.model.projection import Projection


@pytest.mark.parametrize("rows", [0, 1, 6, 7, 8, 32, 33])
def test_every_number_of_rows_gives_the_product(rows):
    torch.manual_seed(0)
    layer = Projection(1024, 1024, std=0.05)
    x = torch.randn(rows, 1024)
    expected = x.double() @ layer.weight.detach().double().T
    with torch.no_grad():
        y = layer(x)
    assert y.is_contiguous()
    torch.testing.assert_close(y.double(), expected, atol=1e-5, rtol=1e-5)


def test_the_other_side_is_for_few_rows_of_large_float32_weights_without_gradient():
    weight, x = torch.zeros(1024, 1024), torch.zeros(8, 1024)
    pays = projection._pays_from_the_left
    assert not pays(x, weight)  # gradients are on
    with torch.no_grad():
        assert pays(x, weight)
        assert not pays(x[:6], weight)
        assert not pays(torch.zeros(33, 1024), weight)
        assert not pays(x[None], weight)
        assert not pays(x[:, :512], weight[:, :512])
        assert not pays(x.bfloat16(), weight.bfloat16())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not pays(x, weight)


def test_gradients_are_those_of_linear():
    layer = Projection(512, 1024, std=0.05)
    x = torch.randn(8, 512, requires_grad=True)
    layer(x).square().sum().backward()
    y = torch.nn.functional.linear(x, layer.weight)
    gradients = torch.autograd.grad(y.square().sum(), (x, layer.weight))
    assert torch.equal(x.grad, gradients[0])
    assert torch.equal(layer.weight.grad, gradients[1])
