"""Expert layers on CPU: `grouped` against what people write, forward plus backward.

Sides, all with the same weights, tokens and top-1 routing, and checked to agree first:

- ``grouped``: `flan_moe.experts`, the default backend.
- ``loop``: the usual loop over experts, ``index_add_`` of ``act(x[token] @ wi) @ wo``, under
  autograd, with one parameter per expert and matrix (stacked parameters would make autograd copy
  the whole stack for every expert). It uses our router.
- ``huggingface``: `SwitchTransformersSparseMLP` of transformers, for the ReLU cases (it has no
  gated experts), with its own router.

Run ``python benchmarks experts [--threads N] [--json PATH]``.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.switch_transformers.modeling_switch_transformers import (
    SwitchTransformersConfig,
    SwitchTransformersSparseMLP,
)

from flan_moe.experts import Experts, SparseFeedForward
from flan_moe.routing import Router, RouterConfig
from measure import alternate, print_table, require_close, write_json


@dataclass(frozen=True, kw_only=True)
class Case:
    """One layer and one number of tokens; ``train`` times the backward pass too."""

    name: str
    tokens: int
    d_model: int
    d_ff: int
    num_experts: int
    activation: str
    train: bool = True


CASES = (
    Case(name="mini", tokens=2048, d_model=256, d_ff=512, num_experts=8, activation="geglu"),
    Case(name="small", tokens=2048, d_model=512, d_ff=1024, num_experts=32, activation="geglu"),
    Case(name="switch", tokens=2048, d_model=512, d_ff=2048, num_experts=8, activation="relu"),
    Case(name="sparse", tokens=512, d_model=512, d_ff=1024, num_experts=64, activation="relu"),
    Case(
        name="decode",
        tokens=4,
        d_model=512,
        d_ff=2048,
        num_experts=64,
        activation="relu",
        train=False,
    ),
)


class Loop(torch.nn.Module):
    """The textbook layer: find each expert's tokens with a mask, add its outputs back."""

    def __init__(self, layer: SparseFeedForward) -> None:
        super().__init__()
        self.router = layer.router
        self.relu = layer.experts.activation == "relu"
        self.wi = torch.nn.ParameterList(w.clone() for w in layer.experts.wi.detach())
        self.wo = torch.nn.ParameterList(w.clone() for w in layer.experts.wo.detach())

    def forward(self, x_TD: Tensor) -> Tensor:
        """Route and run the experts."""
        routing = self.router(x_TD)
        y_TD = torch.zeros_like(x_TD)
        expert_R = torch.repeat_interleave(routing.expert_offsets.diff())
        for expert, (wi, wo) in enumerate(zip(self.wi, self.wo, strict=True)):
            rows = (expert_R == expert).nonzero().squeeze(-1)
            if rows.numel() == 0:
                continue
            token = routing.row_token_R[rows].long()
            h = x_TD[token] @ wi
            if self.relu:
                a = F.relu(h)
            else:
                gate, linear = h.chunk(2, dim=-1)
                a = F.gelu(gate, approximate="tanh") * linear
            y_TD.index_add_(0, token, (a @ wo) * routing.row_weight_R[rows, None])
        return y_TD


def huggingface_copy(layer: SparseFeedForward) -> SwitchTransformersSparseMLP:
    """The same layer as a Hugging Face Switch block, without capacity."""
    num_experts, d_ff, d_model = layer.experts.wo.shape
    block = SwitchTransformersSparseMLP(
        SwitchTransformersConfig(
            hidden_size=d_model,
            d_model=d_model,
            d_ff=d_ff,
            num_experts=num_experts,
            expert_capacity=1 << 30,
            dropout_rate=0.0,
            router_jitter_noise=0.0,
        )
    )
    with torch.no_grad():
        block.router.classifier.weight.copy_(layer.router.weight)
        for index in range(num_experts):
            expert = block.experts[f"expert_{index}"]
            expert.wi.weight.copy_(layer.experts.wi[index].T)
            expert.wo.weight.copy_(layer.experts.wo[index].T)
    return block


def measure(case: Case, repeats: int) -> list[dict[str, object]]:
    """Check that the sides agree, time them in turn, and return one row for each."""
    torch.manual_seed(0)
    layer = SparseFeedForward(
        Router(RouterConfig(num_experts=case.num_experts, capacity_factor=None), case.d_model),
        Experts(case.num_experts, case.d_model, case.d_ff, activation=case.activation),
    )
    torch.nn.init.normal_(layer.router.weight)
    x_TD = torch.randn(case.tokens, case.d_model, requires_grad=case.train)
    dy_TD = torch.randn(case.tokens, case.d_model)
    loop = Loop(layer)
    forwards = {"grouped": lambda: layer(x_TD)[0], "loop": lambda: loop(x_TD)}
    parameters = {"grouped": [*layer.parameters()], "loop": [*loop.parameters()]}
    if case.activation == "relu":
        block = huggingface_copy(layer)

        def huggingface() -> Tensor:
            out = block(x_TD[None])  # (output, router tuple) before transformers 5
            return (out[0] if isinstance(out, tuple) else out).view_as(x_TD)

        forwards["huggingface"] = huggingface
        parameters["huggingface"] = [*block.parameters()]

    def step(side: str) -> Tensor:
        if not case.train:
            with torch.no_grad():
                return forwards[side]()
        for parameter in (x_TD, *parameters[side]):
            parameter.grad = None
        y_TD = forwards[side]()
        y_TD.backward(dy_TD)
        return y_TD.detach()

    y_TD = step("grouped")
    dx_TD = x_TD.grad
    for side in forwards:
        require_close(step(side), y_TD, relative=1e-5, what=f"{case.name}: {side}, output")
        if case.train:
            require_close(x_TD.grad, dx_TD, relative=1e-5, what=f"{case.name}: {side}, gradient")

    seconds = alternate({side: lambda side=side: step(side) for side in forwards}, repeats=repeats)
    matmul_flops = 2 * case.tokens * sum(w[0].numel() for w in layer.experts.weights)
    total_flops = matmul_flops * (3 if case.train else 1)
    return [
        {
            "case": case.name,
            "pass": "forward+backward" if case.train else "forward",
            "side": side,
            "ms": 1e3 * time,
            "GFLOP/s": total_flops / time / 1e9,
            "grouped is faster by": time / seconds["grouped"],
        }
        for side, time in seconds.items()
    ]


def main() -> None:
    """Measure every case, print the table, and write it with --json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the result here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    rows = [row for case in CASES for row in measure(case, args.repeats)]
    print_table(rows)
    ratios = {
        f"{row['case']}: {row['side']} / grouped": row["grouped is faster by"]
        for row in rows
        if row["side"] != "grouped"
    }
    if args.json:
        write_json(
            args.json,
            benchmark="experts",
            packages=("torch", "transformers", "flan-moe-experts"),
            rows=rows,
            ratios=ratios,
        )


if __name__ == "__main__":
    main()
