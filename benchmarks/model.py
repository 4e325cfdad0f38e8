"""Whole models, against transformers' SwitchTransformers and T5, and against our own dense twin.

Base-like Switch models (d_model 768, d_ff 3072, 12 heads, ReLU, tied head, top-1, every other layer
sparse) at reduced depth, with a vocabulary of 4096 so that the head does not decide: E = 8 with
4 + 4 layers, E = 64 with 2 + 2 (weights and gradients of two sides: 12 GiB). ``ours dense`` and
``transformers t5`` are the dense model of equal FLOPs. Each pair has the same weights, drops no
tokens, and is checked first: logits and two gradients, or generated ids.

- ``train_*``: forward, backward and clearing of the gradients, in float32. Tokens are real ones,
  encoder and decoder; about half of a ``padded`` batch is padding (both sides know the mask).
  ``ours packed`` has the same sequences in packed rows, which transformers cannot do. On a CPU
  the gradients of our experts last from step to step (`reserve_gradients`, as in flan-moe-train),
  and those of other models are cleared in both ways: to None, torch's default, and ``(to zero)``,
  which keeps their memory, too; they are compared by the faster. On CUDA all are set to None.
- ``generate_*``: greedy, with caches, a fixed number of new tokens, half as many rows as in
  training; ``single`` is one full row.

Ratios are times: ``hf_over_ours_train_e64`` is transformers' time over ours on the padded batch
(``..._unpadded`` on the other), ``sparse_over_dense_train_e8`` ours sparse over ours dense. The
sides of a case alternate.

Run ``python benchmarks model [--case NAME ...] [--device cpu|cuda] [--json PATH]``.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from flan_moe.model import FlanMoEForConditionalGeneration
from measure import alternate, print_table, require_close, write_json
from seq2seq.batches import Batch, Shape, make_batches, pack, padding_share, real_tokens
from seq2seq.sides import Sides, Sizes, dense_sides, switch_sides, their_gradient

BASE = Sizes(
    vocab_size=4096, d_model=768, d_kv=64, d_ff=3072, num_heads=12, layers=4, num_experts=8
)
TINY = Sizes(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_heads=4, layers=2, num_experts=8)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model and what it does.

    Attributes:
        num_experts: E.
        layers: in each stack; None: those of the sizes.
        train: forward and backward; else generation.
        dense: whether the dense sides run beside it.
    """

    num_experts: int
    layers: int | None = None
    train: bool
    dense: bool = False


CASES = {
    "train_e8": Case(num_experts=8, train=True, dense=True),
    "train_e64": Case(num_experts=64, layers=2, train=True),
    "generate_e8": Case(num_experts=8, train=False, dense=True),
    "generate_e64": Case(num_experts=64, layers=2, train=False),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What all cases share."""

    sizes: Sizes
    shape: Shape
    new_tokens: int
    repeats: int
    device: str


TO_ZERO = " (to zero)"

# Which ratio two sides give, in times: the first over the second.
RATIOS = {
    ("transformers", "ours"): "hf_over_ours_{case}",
    ("transformers t5", "ours dense"): "t5_over_ours_dense_{kind}",
    ("ours", "ours dense"): "sparse_over_dense_{case}",
}


def run_case(name: str, case: Case, plan: Plan) -> tuple[list[dict[str, object]], dict[str, float]]:
    """Check and time the sides of a case on each batch; rows of the table, and ratios."""
    sizes = replace(
        plan.sizes, num_experts=case.num_experts, layers=case.layers or plan.sizes.layers
    )
    pairs = {"": switch_sides(sizes, row_length=plan.shape.encoder, device=plan.device)}
    if case.dense:
        pairs["dense"] = dense_sides(sizes, plan.device)
    shape = plan.shape if case.train else replace(plan.shape, rows=max(plan.shape.rows // 2, 1))
    batches = make_batches(shape, sizes.vocab_size, plan.device)
    if not case.train:
        batches["single"] = {k: v[:1].contiguous() for k, v in batches["unpadded"].items()}
    rows, ratios = [], {}
    for batch_name, batch in batches.items():
        what = f"{name}, {batch_name}"
        if case.train:
            sides, tokens = training_sides(pairs, batch, what), real_tokens(batch)
        else:
            sides = generating_sides(pairs, batch, what, plan.new_tokens)
            tokens = len(batch["input_ids"]) * plan.new_tokens
        seconds = alternate(sides, repeats=plan.repeats, warmup=1)
        suffix = "" if batch_name == "padded" else f"_{batch_name}"
        best: dict[str, float] = {}
        for side, time in seconds.items():
            model = side.removesuffix(TO_ZERO)
            best[model] = min(time, best.get(model, time))
        for (slow, fast), ratio in RATIOS.items():
            if slow in best and fast in best:
                key = ratio.format(case=name, kind=name.split("_")[0])
                ratios[key + suffix] = best[slow] / best[fast]
        for side, time in seconds.items():
            theirs = best["transformers t5" if "dense" in side or "t5" in side else "transformers"]
            rows.append(
                {
                    "case": name,
                    "batch": batch_name,
                    "padding": f"{padding_share(batch):.0%}",
                    "side": side,
                    "ms": 1e3 * time,
                    "tokens/s": round(tokens / time),
                    "times transformers": theirs / time,
                }
            )
    return rows, ratios


def training_sides(
    pairs: dict[str, Sides], batch: Batch, what: str
) -> dict[str, Callable[[], Tensor]]:
    """Forward and backward of each model, after checking that pairs agree."""
    sides: dict[str, Callable[[], Tensor]] = {}
    for kind, pair in pairs.items():
        # Their loss would include auxiliary losses; ours has their coefficients at 0.
        theirs = batch if kind else {**batch, "output_router_logits": False}
        packed = pack(batch) if not kind and padding_share(batch) else None
        check_training(pair, batch, theirs, packed, f"{what} {kind}".strip())
        ours_is = "ours dense" if kind else "ours"
        theirs_is = "transformers t5" if kind else "transformers"
        sides[ours_is] = _step(pair.ours, batch)
        sides[theirs_is] = _step(pair.theirs, theirs)
        if batch["labels"].device.type == "cpu":
            sides[theirs_is + TO_ZERO] = _step_to_zero(pair.theirs, theirs)
            if kind:
                sides[ours_is + TO_ZERO] = _step_to_zero(pair.ours, batch)
        if packed is not None:
            sides["ours packed"] = _step(pair.ours, packed)
    return sides


def check_training(
    pair: Sides, ours: Batch, theirs: Batch, packed: Batch | None, what: str
) -> None:
    """Compare logits and the gradients of the embedding and of a feed-forward network.

    Raises:
        SystemExit: if they differ, or the packed batch gives another gradient of the embedding.
    """
    embedding, layer = "shared.weight", "encoder.layers.1.feed_forward"
    wi = f"{layer}.experts.wi"
    if wi not in pair.theirs_name:
        wi = f"{layer}.wi.weight"
    counted = ours["labels"] != -100

    our_logits = _forward_backward(pair.ours, ours)[counted]
    our_embedding = pair.ours.shared.weight.grad
    our_wi = pair.ours.get_parameter(wi).grad
    busiest = 0
    if our_wi.ndim == 3:
        busiest = int(our_wi.flatten(1).norm(dim=1).argmax())
        our_wi = our_wi[busiest].clone()  # or all of them would stay while the other side runs
    _forget_gradients(pair.ours)

    their_logits = _forward_backward(pair.theirs, theirs)[counted]
    require_close(our_logits, their_logits, relative=1e-4, what=f"{what}: logits")
    for name, gradient in ((embedding, our_embedding), (wi, our_wi)):
        expected = their_gradient(pair, name, busiest)
        require_close(gradient, expected, relative=1e-3, what=f"{what}: gradient of {name}")
    _forget_gradients(pair.theirs)

    if packed is not None:
        _forward_backward(pair.ours, packed)
        gradient = pair.ours.shared.weight.grad
        require_close(gradient, our_embedding, relative=1e-3, what=f"{what}: packed gradient")
        _forget_gradients(pair.ours)


def _step(model: torch.nn.Module, inputs: Batch) -> Callable[[], Tensor]:
    def step() -> Tensor:
        logits = _forward_backward(model, inputs)
        _forget_gradients(model)  # so that only one side's take memory at a time
        return logits

    return step


def _step_to_zero(model: torch.nn.Module, inputs: Batch) -> Callable[[], Tensor]:
    weights = list(model.parameters())
    gradients: list[Tensor | None] = [None] * len(weights)  # not those of `_step`

    def step() -> Tensor:
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        logits = _forward_backward(model, inputs)
        model.zero_grad(set_to_none=False)
        gradients[:] = [weight.grad for weight in weights]
        _forget_gradients(model)
        return logits

    return step


def _forward_backward(model: torch.nn.Module, inputs: Batch) -> Tensor:
    if isinstance(model, FlanMoEForConditionalGeneration) and model.device.type == "cpu":
        model.reserve_gradients(accumulate=False)
    output = model(**inputs)
    output.loss.backward()
    return output.logits.detach()


def _forget_gradients(model: torch.nn.Module) -> None:
    for weight in model.parameters():
        weight.grad = None


def generating_sides(
    pairs: dict[str, Sides], batch: Batch, what: str, new_tokens: int
) -> dict[str, Callable[[], Tensor]]:
    """Greedy generation by each model, after checking that pairs write the same."""
    sides: dict[str, Callable[[], Tensor]] = {}
    for kind, pair in pairs.items():
        found = {
            "ours dense" if kind else "ours": _generation(pair.ours, batch, new_tokens),
            "transformers t5" if kind else "transformers": _generation(
                pair.theirs, batch, new_tokens
            ),
        }
        ours, theirs = (generate() for generate in found.values())
        if not torch.equal(ours, theirs):
            share = (ours != theirs).float().mean().item()
            raise SystemExit(f"{what} {kind}: {share:.1%} of the generated ids differ")
        sides |= found
    return sides


def _generation(model: torch.nn.Module, batch: Batch, new_tokens: int) -> Callable[[], Tensor]:
    def generate() -> Tensor:
        with torch.no_grad():
            return model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                do_sample=False,
                num_beams=1,
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
            )

    return generate


def main() -> None:
    """Measure, print the table and the ratios, and write them with --json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--case", action="append", choices=CASES, help="only these; repeat")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--rows", type=int, help="rows of a training batch (default: 16, on CUDA 128)"
    )
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try the script")
    parser.add_argument("--json", type=Path, help="write the result here")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch finds no CUDA device")
    torch.set_num_threads(args.threads)

    lengths = {"encoder": 16, "decoder": 8} if args.tiny else {"encoder": 128, "decoder": 32}
    plan = Plan(
        sizes=TINY if args.tiny else BASE,
        shape=Shape(rows=args.rows or (16 if args.device == "cpu" else 128), **lengths),
        new_tokens=args.new_tokens,
        repeats=args.repeats,
        device=args.device,
    )
    rows, ratios = [], {}
    for name in args.case or CASES:
        case_rows, case_ratios = run_case(name, CASES[name], plan)
        print_table(case_rows)
        rows += case_rows
        ratios |= case_ratios
    for name, value in ratios.items():
        print(f"{name:<44} {value:6.2f}")
    if args.json:
        write_json(
            args.json,
            benchmark="model",
            packages=("torch", "transformers", "flan-moe-model"),
            rows=rows,
            ratios=ratios,
        )


if __name__ == "__main__":
    main()
