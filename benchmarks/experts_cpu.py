"""Expert layers on CPU: ours against a dense network, what people write, and BLAS itself.

Sides of a case, all but ``dense`` with the same weights, tokens and top-1 routing, and checked to
agree first:

- ``ours``: `flan_moe.experts.SparseFeedForward`, router included, with lasting gradient buffers
  (`Experts.reserve_gradients`), which each backward pass overwrites.
- ``ours fresh``: the same with gradients as autograd gives them, into fresh memory.
- ``dense``: one feed-forward network of the width of one expert: what equals top-1 in FLOPs.
- ``products``: nothing but the six matrix products of each expert, into lasting memory: what is
  left when everything but BLAS costs nothing.
- ``loop``: the usual loop over experts, ``index_add_`` of ``act(x[token] @ wi) @ wo``, under
  autograd, with one parameter per expert and matrix (stacked parameters would make autograd copy
  the whole stack for every expert). It uses our router.
- ``huggingface``: `SwitchTransformersSparseMLP` of transformers, for the ReLU cases (it has no
  gated experts), with its own router.

The cases ``touch N`` run one layer of 128 experts of which only N have rows.

Run ``python benchmarks experts_cpu [--case NAME ...] [--threads N] [--json PATH]``.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.switch_transformers.modeling_switch_transformers import (
    SwitchTransformersConfig,
    SwitchTransformersSparseMLP,
)

from flan_moe.experts import Experts, SharedExperts, SparseFeedForward
from flan_moe.routing import Router, RouterConfig
from measure import alternate, print_table, require_close, write_json


@dataclass(frozen=True, kw_only=True)
class Case:
    """One layer and one number of tokens.

    Attributes:
        train: whether the backward pass is timed too.
        touched: how many experts have rows; None: as many as the router chooses.
        peers: whether to run the loop and Hugging Face's block.
    """

    name: str
    num_experts: int
    tokens: int = 4096
    d_model: int = 512
    d_ff: int = 2048
    activation: str = "relu"
    train: bool = True
    touched: int | None = None
    peers: bool = True


CASES = (
    Case(name="e8", num_experts=8),
    Case(name="e128", num_experts=128),
    *(Case(name=f"touch {n}", num_experts=128, touched=n, peers=False) for n in (8, 32, 128)),
    Case(name="geglu", num_experts=32, tokens=2048, d_ff=1024, activation="geglu"),
    Case(name="mini", num_experts=8, tokens=2048, d_model=256, d_ff=512, activation="geglu"),
    Case(name="decode", num_experts=64, tokens=4, train=False),
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


def huggingface_copy(layer: SparseFeedForward, tokens: int) -> SwitchTransformersSparseMLP:
    """The same layer as a Hugging Face Switch block: no jitter, a capacity of all tokens."""
    num_experts, d_ff, d_model = layer.experts.wo.shape
    block = SwitchTransformersSparseMLP(
        SwitchTransformersConfig(
            hidden_size=d_model,
            d_model=d_model,
            d_ff=d_ff,
            num_experts=num_experts,
            expert_capacity=tokens,
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


class Products:
    """The matrix products of a layer's experts for a given routing, and nothing else."""

    def __init__(self, layer: SparseFeedForward, row_counts: list[int]) -> None:
        self.wi_EDF, self.wo_EFD = layer.experts.wi.detach(), layer.experts.wo.detach()
        _, d_ff, d_model = self.wo_EFD.shape
        ends = torch.tensor([0, *row_counts]).cumsum(0).tolist()
        self.slices = [(e, slice(*rows)) for e, rows in enumerate(pairwise(ends)) if row_counts[e]]
        self.x_RD, self.y_RD, self.dx_RD = torch.randn(3, ends[-1], d_model)
        self.h_RH = torch.randn(ends[-1], self.wi_EDF.shape[2])
        self.a_RF, self.da_RF = torch.randn(2, ends[-1], d_ff)
        self.dwi_EDF, self.dwo_EFD = torch.zeros_like(self.wi_EDF), torch.zeros_like(self.wo_EFD)

    def forward(self) -> None:
        """Up and down."""
        for expert, rows in self.slices:
            torch.mm(self.x_RD[rows], self.wi_EDF[expert], out=self.h_RH[rows])
        for expert, rows in self.slices:
            torch.mm(self.a_RF[rows], self.wo_EFD[expert], out=self.y_RD[rows])

    def backward(self) -> None:
        """To the hidden activation, the weights and the tokens."""
        for expert, rows in self.slices:
            torch.mm(self.x_RD[rows], self.wo_EFD[expert].T, out=self.da_RF[rows])
            torch.mm(self.a_RF[rows].T, self.x_RD[rows], out=self.dwo_EFD[expert])
        for expert, rows in self.slices:
            torch.mm(self.x_RD[rows].T, self.h_RH[rows], out=self.dwi_EDF[expert])
            torch.mm(self.h_RH[rows], self.wi_EDF[expert].T, out=self.dx_RD[rows])


def forced_experts(case: Case) -> Tensor | None:
    """Experts in turn, for a case that says how many are touched."""
    if case.touched is None:
        return None
    return torch.arange(case.tokens)[:, None] % case.touched


def make_layer(case: Case) -> SparseFeedForward:
    """The layer with a dropless top-1 router."""
    layer = SparseFeedForward(
        Router(RouterConfig(num_experts=case.num_experts, capacity_factor=None), case.d_model),
        Experts(case.num_experts, case.d_model, case.d_ff, activation=case.activation),
    )
    # Logits of order one: probabilities so small that gradients are subnormal numbers take longer.
    torch.nn.init.normal_(layer.router.weight, std=case.d_model**-0.5)
    return layer


def measure(case: Case, repeats: int) -> list[dict[str, object]]:
    """Check that the sides agree, time them in turn, and return one row for each."""
    torch.manual_seed(0)
    fresh = make_layer(case)
    ours = make_layer(case)
    ours.load_state_dict(fresh.state_dict())
    if case.train:
        ours.experts.reserve_gradients(accumulate=False)
    dense = SharedExperts(case.d_model, case.d_ff, activation=case.activation)
    x_TD = torch.randn(case.tokens, case.d_model, requires_grad=case.train)
    dy_TD = torch.randn(case.tokens, case.d_model)
    forced = forced_experts(case)

    modules = {"ours": ours, "ours fresh": fresh, "dense": dense}
    forwards: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: ours(x_TD, forced_experts=forced)[0],
        "ours fresh": lambda: fresh(x_TD, forced_experts=forced)[0],
        "dense": lambda: dense(x_TD),
    }
    if case.peers:
        loop = modules["loop"] = Loop(fresh)
        forwards["loop"] = lambda: loop(x_TD)
    if case.peers and case.activation == "relu":
        block = modules["huggingface"] = huggingface_copy(fresh, case.tokens)

        def huggingface() -> Tensor:
            out = block(x_TD[None])  # (output, router tuple) before transformers 5
            return (out[0] if isinstance(out, tuple) else out).view_as(x_TD)

        forwards["huggingface"] = huggingface

    def step(side: str) -> Tensor:
        if not case.train:
            with torch.no_grad():
                return forwards[side]()
        x_TD.grad = None
        for parameter in modules[side].parameters():
            if side != "ours" or parameter is ours.router.weight:
                parameter.grad = None
        y_TD = forwards[side]()
        y_TD.backward(dy_TD)
        return y_TD.detach()

    y_TD = step("ours")
    dx_TD = x_TD.grad
    for side in set(forwards) - {"dense"}:
        require_close(step(side), y_TD, relative=1e-5, what=f"{case.name}: {side}, output")
        if case.train:
            require_close(x_TD.grad, dx_TD, relative=1e-5, what=f"{case.name}: {side}, gradient")
    if case.train:
        for name in ("wi", "wo"):
            pair = (getattr(layer.experts, name).grad for layer in (ours, fresh))
            require_close(*pair, relative=1e-6, what=f"{case.name}: gradient of {name}")

    counts = ours(x_TD.detach(), forced_experts=forced)[1].expert_offsets.diff().tolist()
    products = Products(fresh, counts)

    def blas() -> None:
        products.forward()
        if case.train:
            products.backward()

    sides = {side: lambda side=side: step(side) for side in forwards} | {"products": blas}
    seconds = alternate(sides, repeats=repeats)
    matmul_flops = 2 * case.tokens * (fresh.experts.wi[0].numel() + fresh.experts.wo[0].numel())
    total_flops = matmul_flops * (3 if case.train else 1)
    return [
        {
            "case": case.name,
            "pass": "forward+backward" if case.train else "forward",
            "side": side,
            "ms": 1e3 * time,
            "GFLOP/s": total_flops / time / 1e9,
            "over ours": time / seconds["ours"],
        }
        for side, time in seconds.items()
    ]


RATIOS = {
    "ours_over_dense_e8": ("e8", "ours", "dense"),
    "ours_over_dense_e128": ("e128", "ours", "dense"),
    "ours_over_products_e8": ("e8", "ours", "products"),
    "ours_over_products_e128": ("e128", "ours", "products"),
    "products_over_dense_e128": ("e128", "products", "dense"),
    "fresh_over_dense_e8": ("e8", "ours fresh", "dense"),
    "fresh_over_dense_e128": ("e128", "ours fresh", "dense"),
    "hf_over_ours_e8": ("e8", "huggingface", "ours"),
    "hf_over_ours_e128": ("e128", "huggingface", "ours"),
    "loop_over_ours_e128": ("e128", "loop", "ours"),
}


def main() -> None:
    """Measure every case, print the table and the ratios, and write them with --json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the result here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    cases = [case for case in CASES if args.case is None or case.name in args.case]
    rows = [row for case in cases for row in measure(case, args.repeats)]
    print_table(rows)
    time = {(row["case"], row["side"]): row["ms"] for row in rows}
    ratios = {
        name: time[case, above] / time[case, below]
        for name, (case, above, below) in RATIOS.items()
        if (case, above) in time
    }
    print()
    for name, ratio in ratios.items():
        print(f"{name:>26}  {ratio:.3f}")
    if args.json:
        write_json(
            args.json,
            benchmark="experts_cpu",
            packages=("torch", "transformers", "flan-moe-experts"),
            rows=rows,
            ratios=ratios,
        )


if __name__ == "__main__":
    main()
