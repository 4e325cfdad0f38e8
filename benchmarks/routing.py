"""Routing, from hidden states to the experts' inputs, against dispatch by dense masks.

Every side runs in training mode and does the same work: logits, selection, capacity (factor 1.25),
combine weights, balance and z loss, and the gather of the tokens that each expert reads. D is 64,
so that routing is what is measured and not matrix products.

- ``ours``: `flan_moe.routing` (all T tokens are one group), then one ``index_select``. It also
  computes its statistics, which no other side has.
- ``one-hot``: the algorithm of flaxformer's masked routers and Mesh TensorFlow, in torch: groups of
  at most 4,096 tokens, dispatch and combine tensors (G, T_g, E, C), and the einsum with them.
- ``huggingface``: `SwitchTransformersTop1Router`, its two losses, and the gather by expert as in
  `SwitchTransformersSparseMLP`. ``huggingface, router`` is the router alone, which ends with a
  mask: less work than the other sides do.
- ``st-moe-pytorch``: `TopNGating` and the same einsum, for top-2, where it is installed.

All of them are checked to keep the same (token, expert) pairs with the same weights first: one-hot
and st-moe against ours group by group, as capacity counts within a group.

Peak memory is what one forward pass adds: on CPU, growth of the process's peak resident set; on
CUDA, of allocated memory. A side whose estimate is above half of the free memory is skipped.

Run ``python benchmarks routing [--threads N] [--device cuda] [--json PATH]``.
"""

import argparse
import ctypes
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.switch_transformers.modeling_switch_transformers import (
    SwitchTransformersConfig,
    SwitchTransformersTop1Router,
    load_balancing_loss_func,
    router_z_loss_func,
)

from flan_moe.routing import Router, RouterConfig, Routing
from measure import alternate, print_table, require_close, write_json

D_MODEL = 64
FACTOR = 1.25
GROUP = 4_096
TOKENS = {"cpu": (4_096, 65_536), "cuda": (4_096, 65_536, 1 << 20)}
EXPERTS = (8, 64, 512)
ROUTERS = ("switch", "top_k", "top_k, normalised", "expert_choice")

# What a side hands to the experts and the loss, to be differentiated.
Outputs = list[Tensor]
# The (T, E) combine weights of a side, for the check.
Weights = Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One router at one size."""

    router: str
    tokens: int
    num_experts: int

    @property
    def top_k(self) -> int:
        """Choices per token (1 for expert choice, where it means nothing)."""
        return 2 if self.router.startswith("top_k") else 1

    @property
    def group(self) -> int:
        """Tokens per group of the mask sides."""
        return min(self.tokens, GROUP)

    @property
    def capacity(self) -> int:
        """Tokens per expert and group."""
        return max(round(FACTOR * self.group / self.num_experts), 4)

    def config(self) -> RouterConfig:
        """Our router's options."""
        return RouterConfig(
            name=self.router.split(",")[0],
            num_experts=self.num_experts,
            top_k=self.top_k,
            capacity_factor=FACTOR,
            renormalise="before_drop" if self.router.endswith("normalised") else "never",
        )


def ours(router: Router, x_TD: Tensor) -> Outputs:
    """Our side."""
    routing = router(x_TD)
    x_RD = x_TD.index_select(0, routing.row_token_R)
    return [x_RD, routing.row_weight_R, *routing.losses.values()]


def dense_weights(routing: Routing) -> Tensor:
    """(T, E) combine weights of a routing."""
    rows = int(routing.expert_offsets[-1])
    expert_R = torch.repeat_interleave(routing.expert_offsets.diff())
    weight_TE = torch.zeros(routing.num_tokens, routing.num_experts, device=expert_R.device)
    weight_TE[routing.row_token_R[:rows].long(), expert_R] = routing.row_weight_R[:rows].detach()
    return weight_TE


def one_hot_masks(case: Case, weight_ED: Tensor, x_GTD: Tensor) -> tuple[Tensor, ...]:
    """Dispatch (bool) and combine tensors, (G, T_g, E, C), and the two losses."""
    experts, capacity = case.num_experts, case.capacity
    logits_GTE = x_GTD.float() @ weight_ED.T
    probs_GTE = logits_GTE.softmax(dim=-1)
    z = logits_GTE.logsumexp(dim=-1).square().mean()
    if case.router == "expert_choice":
        gate_GEC, token_GEC = probs_GTE.transpose(1, 2).topk(capacity, dim=-1)
        token_T = torch.arange(case.group, device=x_GTD.device)
        dispatch = token_GEC[:, None] == token_T[None, :, None, None]
        return dispatch, gate_GEC[:, None] * dispatch, z.new_zeros(()), z
    expert_GTK = probs_GTE.topk(case.top_k, dim=-1).indices
    queue_GN = expert_GTK.transpose(1, 2).flatten(1)  # all first choices, then all second choices
    chosen_GNE = F.one_hot(queue_GN, experts).int()
    place_GNE = chosen_GNE.cumsum(dim=1, dtype=torch.int32) * chosen_GNE - 1
    place_GTE = place_GNE.unflatten(1, (case.top_k, case.group)).amax(dim=1)
    fraction_GE = chosen_GNE.sum(dim=1) / case.group
    balance = experts * (fraction_GE * probs_GTE.mean(dim=1)).sum(dim=-1).mean()
    slot_C = torch.arange(capacity, device=x_GTD.device, dtype=torch.int32)
    dispatch = place_GTE[..., None] == slot_C
    combine = torch.einsum("gte,gtec->gtec", probs_GTE, dispatch.to(probs_GTE.dtype))
    return dispatch, combine, balance, z


def one_hot(case: Case, weight_ED: Tensor, x_TD: Tensor) -> Outputs:
    """The dense side: masks, and the einsum that gathers what each expert reads."""
    x_GTD = x_TD.unflatten(0, (-1, case.group))
    dispatch, combine, balance, z = one_hot_masks(case, weight_ED, x_GTD)
    x_GECD = torch.einsum("gtec,gtd->gecd", dispatch.to(x_TD.dtype), x_GTD)
    return [x_GECD, combine, balance, z]


def huggingface_router(case: Case, weight_ED: Tensor) -> SwitchTransformersTop1Router:
    """Transformers' router with the same weight and, for all tokens at once, capacity."""
    router = SwitchTransformersTop1Router(
        SwitchTransformersConfig(
            hidden_size=D_MODEL,
            num_experts=case.num_experts,
            expert_capacity=max(round(FACTOR * case.tokens / case.num_experts), 4),
            router_jitter_noise=0.0,
        )
    ).to(weight_ED.device)
    router.classifier.weight.data.copy_(weight_ED)
    return router.train()


def huggingface(router: SwitchTransformersTop1Router, x_TD: Tensor) -> Outputs:
    """Transformers' side: the router, its losses as the model computes them, the gather."""
    mask_1TE, prob_1T1, logits_1TE = router(x_TD[None])
    losses = [
        load_balancing_loss_func(logits_1TE.softmax(dim=-1), mask_1TE.argmax(dim=-1)),
        router_z_loss_func(logits_1TE),
    ]
    mask_1TE = mask_1TE.bool()
    active = mask_1TE.flatten(0, 1).sum(dim=0).nonzero().flatten().tolist()
    return [*(x_TD[mask_1TE[0, :, expert]] for expert in active), prob_1T1, *losses]


def st_moe_gating(case: Case, weight_ED: Tensor) -> torch.nn.Module:
    """st-moe-pytorch's gating with the same weight, always routing to both choices."""
    from st_moe_pytorch.st_moe_pytorch import TopNGating

    gating = TopNGating(D_MODEL, case.num_experts, threshold_train=1e-9).to(weight_ED.device)
    gating.to_gates.weight.data.copy_(weight_ED)
    return gating.train()


def st_moe(case: Case, gating: torch.nn.Module, x_TD: Tensor) -> Outputs:
    """st-moe-pytorch's side."""
    x_GTD = x_TD.unflatten(0, (-1, case.group))
    dispatch, combine, *losses = gating(x_GTD)
    return [torch.einsum("gtec,gtd->gecd", dispatch, x_GTD), combine, *losses]


def sides_of(case: Case, device: str) -> tuple[dict[str, Callable[[], Outputs]], dict[str, int]]:
    """The sides, checked to agree with ours where they fit, and the rest with their estimates."""
    torch.manual_seed(0)
    x_TD = torch.randn(case.tokens, D_MODEL, device=device, requires_grad=True)
    router = Router(case.config(), D_MODEL, device=device).train()
    torch.nn.init.normal_(router.weight, std=0.25)
    weight_ED = router.weight.detach().clone().requires_grad_()
    sides: dict[str, Callable[[], Outputs]] = {"ours": lambda: ours(router, x_TD)}
    checks: dict[str, Weights] = {}
    cells = case.tokens * case.num_experts * case.capacity
    estimates = {}
    if case.router != "top_k, normalised":
        sides["one-hot"] = lambda: one_hot(case, weight_ED, x_TD)
        estimates["one-hot"] = cells * 4 * 3  # combine, and the masks as numbers, twice
        checks["one-hot"] = lambda: one_hot(case, weight_ED, x_TD)[1].sum(dim=-1).flatten(0, 1)
    elif importlib.util.find_spec("st_moe_pytorch") is not None:
        gating = st_moe_gating(case, weight_ED)
        sides["st-moe-pytorch"] = lambda: st_moe(case, gating, x_TD)
        estimates["st-moe-pytorch"] = cells * 4 * 8  # products of the two choices' masks
        checks["st-moe-pytorch"] = lambda: st_moe(case, gating, x_TD)[1].sum(-1).flatten(0, 1)
    else:
        print(f"{label(case)}: st-moe-pytorch is skipped, it is not installed")
    if case.router == "switch":
        theirs = huggingface_router(case, weight_ED)
        sides["huggingface"] = lambda: huggingface(theirs, x_TD)
        sides["huggingface, router"] = lambda: list(theirs(x_TD[None])[1:])

        def huggingface_weights() -> Tensor:
            mask_1TE, prob_1T1, _ = theirs(x_TD[None])
            return (mask_1TE * prob_1T1)[0]

        checks["huggingface"] = huggingface_weights
    free = free_bytes(device)
    skipped = {side: size for side, size in estimates.items() if size > free / 2}
    for side, size in skipped.items():
        print(
            f"{label(case)}: {side} is skipped, it needs about {size / 2**30:.1f} GiB and "
            f"{free / 2**30:.1f} GiB are free"
        )
        del sides[side], checks[side]
    for side, weights in checks.items():
        with torch.no_grad():
            group = case.tokens if side == "huggingface" else case.group
            expected_TE = torch.cat([dense_weights(router(part)) for part in x_TD.split(group)])
            weight_TE = weights()
            what = f"{label(case)}: {side}"
            if not torch.equal(weight_TE > 0, expected_TE > 0):
                raise SystemExit(f"{what}: the sides keep different (token, expert) pairs")
            require_close(expected_TE, weight_TE, relative=1e-5, what=what)
    return sides, skipped


def backward(outputs: Outputs) -> None:
    """Differentiate the sum of everything that depends on the router or the tokens."""
    live = [output for output in outputs if output.requires_grad]
    torch.autograd.backward(live, [torch.ones_like(output) for output in live])


def free_bytes(device: str) -> int:
    """Memory that a side may use."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """What one call adds to the peak of allocated (CUDA) or resident (CPU, Linux) memory."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def resident(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))

    ctypes.CDLL(None).malloc_trim(0)  # freed pages that the allocator keeps would hide the growth
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    call()
    return resident("VmHWM") - before


def label(case: Case) -> str:
    """How a case is named in messages and ratios."""
    return f"{case.router}, E={case.num_experts}, T={case.tokens // 1024}k"


def measure(case: Case, device: str, repeats: int) -> list[dict[str, object]]:
    """Check, time and weigh the sides of a case; one row for each."""
    sides, _ = sides_of(case, device)
    start = time.perf_counter()
    memory = {side: peak_bytes(call, device) for side, call in sides.items()}
    seconds = time.perf_counter() - start  # for one call of each side
    options = {"repeats": 3, "warmup": 0} if seconds > 5.0 else {"repeats": repeats, "warmup": 2}
    print(f"{label(case)}: {', '.join(sides)} agree; measuring", flush=True)
    forward = alternate(sides, **options)
    both = alternate(
        {side: lambda call=call: backward(call()) for side, call in sides.items()}, **options
    )
    return [
        {
            "router": case.router,
            "E": case.num_experts,
            "T": case.tokens,
            "side": side,
            "forward ms": 1e3 * forward[side],
            "forward+backward ms": 1e3 * both[side],
            "peak MiB": memory[side] / 2**20,
            "time / ours": forward[side] / forward["ours"],
            "both / ours": both[side] / both["ours"],
            "memory / ours": memory[side] / memory["ours"],
        }
        for side in sides
    ]


def ratios_of(rows: list[dict[str, object]]) -> dict[str, float]:
    """Theirs over ours, by case; and the two that the acceptance of the package names."""
    ratios = {}
    for row in rows:
        if row["side"] == "ours":
            continue
        case = Case(router=row["router"], tokens=row["T"], num_experts=row["E"])
        for name in ("time", "both", "memory"):
            ratios[f"{label(case)}: {row['side']}, {name}"] = row[f"{name} / ours"]
        if row["side"] == "one-hot" and label(case) == "switch, E=64, T=64k":
            ratios["onehot_over_ours_time_e64_t64k"] = row["time / ours"]
            ratios["onehot_over_ours_memory_e64_t64k"] = row["memory / ours"]
    return ratios


def main() -> None:
    """Measure every case, print the table, and write it with --json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--routers", nargs="*", choices=ROUTERS, default=ROUTERS)
    parser.add_argument("--tokens", nargs="*", type=int, help="numbers of tokens, for fewer cases")
    parser.add_argument("--experts", nargs="*", type=int, default=EXPERTS)
    parser.add_argument("--json", type=Path, help="write the result here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    rows = []
    for router in args.routers:
        for tokens in args.tokens or TOKENS[args.device]:
            for num_experts in args.experts:
                case = Case(router=router, tokens=tokens, num_experts=num_experts)
                rows += measure(case, args.device, args.repeats)
    print_table(rows)
    ratios = ratios_of(rows)
    slower = [name for name, ratio in ratios.items() if ratio < 1.0]
    print(f"slower or larger than a peer: {'; '.join(slower) or 'nowhere'}")
    if args.json:
        write_json(
            args.json,
            benchmark="routing",
            packages=("torch", "transformers", "flan-moe-routing"),
            rows=rows,
            ratios=ratios,
        )


if __name__ == "__main__":
    main()
