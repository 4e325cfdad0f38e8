"""State dicts under per-expert names, against the libraries that use them."""

import re

import pytest
import torch
from torch import nn

from flan_moe.experts import Experts

D_MODEL, D_FF, EXPERTS = 6, 10, 3


def make_experts(activation="relu", **options):
    torch.manual_seed(0)
    return Experts(EXPERTS, D_MODEL, D_FF, activation=activation, **options)


class Expert(nn.Module):
    """An expert as T5 writes it, with `nn.Linear`: a definition of the names by its own modules."""

    def __init__(self, *, gated, bias):
        super().__init__()
        for name in ("wi_0", "wi_1") if gated else ("wi",):
            setattr(self, name, nn.Linear(D_MODEL, D_FF, bias=bias))
        self.wo = nn.Linear(D_FF, D_MODEL, bias=bias)

    def forward(self, x):
        if hasattr(self, "wi"):
            return self.wo(torch.relu(self.wi(x)))
        return self.wo(nn.functional.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ["relu", "geglu"])
def test_linear_modules_of_each_expert_load_and_come_back(activation, bias):
    gated = activation == "geglu"
    theirs = nn.ModuleDict({f"expert_{e}": Expert(gated=gated, bias=bias) for e in range(EXPERTS)})
    experts = make_experts(activation, bias=bias, state_names="per_expert")
    experts.load_state_dict(theirs.state_dict())
    back = experts.state_dict()
    assert back.keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert torch.equal(back[name], value), name

    x_D = torch.randn(D_MODEL)
    for index in range(EXPERTS):
        h_H = x_D @ experts.wi[index] + (experts.bi[index] if bias else 0.0)
        if gated:
            a_F = nn.functional.gelu(h_H[:D_FF], approximate="tanh") * h_H[D_FF:]
        else:
            a_F = torch.relu(h_H)
        y_D = a_F @ experts.wo[index] + (experts.bo[index] if bias else 0.0)
        torch.testing.assert_close(y_D, theirs[f"expert_{index}"](x_D))


def test_a_hugging_face_switch_block_loads_inside_a_larger_model():
    switch = pytest.importorskip("transformers.models.switch_transformers")
    config = switch.SwitchTransformersConfig(d_model=D_MODEL, d_ff=D_FF, num_experts=EXPERTS)
    from transformers.models.switch_transformers.modeling_switch_transformers import (
        SwitchTransformersSparseMLP,
    )

    theirs = SwitchTransformersSparseMLP(config).state_dict()
    theirs = {n: v for n, v in theirs.items() if n.startswith("experts.expert_")}
    if not theirs:
        pytest.skip("this transformers stacks the experts")
    layer = nn.ModuleDict({"experts": make_experts()})
    layer.load_state_dict(theirs)
    assert torch.equal(layer["experts"].wo[2], theirs["experts.expert_2.wo.weight"].T)


def test_stacked_names_stay_the_default_and_load_everywhere():
    plain, named = make_experts("geglu", bias=True), make_experts("geglu", bias=True)
    named.state_names = "per_expert"
    assert list(plain.state_dict()) == ["wi", "wo", "bi", "bo"]
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.normal_()
    named.load_state_dict(plain.state_dict())
    plain.load_state_dict(named.state_dict())
    for ours, expected in zip(named.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("expert_1.wo.weight"),
            "wi_0 and wi_1 and wo of 3 experts; missing expert_1.wo.weight; unexpected none",
        ),
        (
            lambda s: s.update({"expert_3.wo.weight": s["expert_0.wo.weight"]}),
            "missing none; unexpected expert_3.wo.weight",
        ),
        (
            lambda s: [s.update({f"expert_{e}.wi.weight": s.pop(f"expert_{e}.wi_0.weight")})
                       for e in range(EXPERTS)],
            "missing expert_0.wi_0.weight.*unexpected expert_0.wi.weight",
        ),
        (
            lambda s: s.update({"expert_0.wo.bias": torch.zeros(D_MODEL)}),
            "missing expert_0.wi_0.bias, expert_0.wi_1.bias.* and 4 more",
        ),
        (
            lambda s: s.update({"wo": torch.zeros(EXPERTS, D_FF, D_MODEL)}),
            r"expert_\*: there is wo as well",
        ),
    ],
    ids=["a matrix is missing", "an expert too many", "not gated", "one bias", "both names"],
)  # fmt: skip
def test_what_does_not_fit_is_named(change, message):
    experts = make_experts("geglu", state_names="per_expert")
    before = [p.clone() for p in experts.parameters()]
    state = dict(experts.state_dict())
    change(state)
    with pytest.raises(ValueError, match=message):
        experts.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(before, experts.parameters(), strict=True))


def test_a_matrix_of_the_wrong_shape_is_named():
    experts = make_experts(state_names="per_expert")
    state = dict(experts.state_dict())
    for e in range(EXPERTS):
        state[f"expert_{e}.wo.weight"] = torch.zeros(D_MODEL, D_FF + 1)
    with pytest.raises(RuntimeError, match=r"size mismatch for wo"):
        experts.load_state_dict(state)


def test_names_are_refused_unless_known():
    with pytest.raises(ValueError, match=re.escape("state_names='hf': expected one of ('stacked'")):
        make_experts(state_names="hf")
