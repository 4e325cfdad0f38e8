"""A whole Switch model on CPU: forward plus backward, against transformers' SwitchTransformers.

Both sides have the same weights (E = 8, every other layer sparse, top-1, ReLU, tied head), read
the same batch, drop no tokens, and are checked to give the same logits and the same gradient of
the embedding first. Three batches: full rows, rows of random lengths padded to the longest (both
sides know the mask), and the same sequences packed into rows, which only our side can do.
Speed counts real tokens, encoder plus decoder.

Run ``python benchmarks model [--threads N] [--json PATH]``.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

from flan_moe.model import FlanMoEConfig, FlanMoEForConditionalGeneration
from measure import alternate, print_table, require_close, write_json

EXPERTS = 8
LAYERS = 4
SIZES = {"vocab_size": 4096, "d_model": 256, "d_kv": 32, "d_ff": 1024, "num_heads": 8}
ROWS, ENCODER_LENGTH, DECODER_LENGTH = 12, 256, 64

Batch = dict[str, Tensor]


def make_sides() -> tuple[
    FlanMoEForConditionalGeneration, SwitchTransformersForConditionalGeneration
]:
    """Our model and theirs, with the same random weights, in training mode without dropout."""
    torch.manual_seed(0)
    router = {"name": "switch", "num_experts": EXPERTS, "capacity_factor": None}
    ours = FlanMoEForConditionalGeneration(
        FlanMoEConfig(
            **SIZES,
            num_layers=LAYERS,
            activation="relu",
            tie_word_embeddings=True,
            dropout_rate=0.0,
            balance_coef=0.0,
            encoder_router=router,
            decoder_router=router,
        )
    )
    for name, weight in ours.named_parameters():
        if "router" in name:  # decided enough that rounding flips no token's expert
            torch.nn.init.normal_(weight, std=0.5)
    theirs = SwitchTransformersForConditionalGeneration(
        SwitchTransformersConfig(
            **SIZES,
            num_layers=LAYERS,
            num_decoder_layers=LAYERS,
            num_sparse_encoder_layers=LAYERS // 2,
            num_sparse_decoder_layers=LAYERS // 2,
            num_experts=EXPERTS,
            expert_capacity=ENCODER_LENGTH,  # per row: nothing is dropped
            dropout_rate=0.0,
            router_jitter_noise=0.0,
            decoder_start_token_id=0,
        )
    )
    missing, unexpected = theirs.load_state_dict(switch_names(ours), strict=False)
    tied = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}
    if unexpected or not set(missing) <= tied:
        raise SystemExit(f"weights do not map: missing {missing}, unexpected {unexpected}")
    return ours.train(), theirs.train()


def switch_names(model: FlanMoEForConditionalGeneration) -> dict[str, Tensor]:
    """Our weights under transformers' names, experts apart and transposed."""
    renamed = {"shared.weight": model.shared.weight}
    parts = {
        "encoder": {"self_attention": (0, "SelfAttention"), "feed_forward": (1, "mlp")},
        "decoder": {
            "self_attention": (0, "SelfAttention"),
            "cross_attention": (1, "EncDecAttention"),
            "feed_forward": (2, "mlp"),
        },
    }
    for name, weight in model.named_parameters():
        stack, *path = name.split(".")
        if path[0] == "final_norm":
            renamed[f"{stack}.final_layer_norm.weight"] = weight
        elif path[0] == "position_bias":
            bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
            renamed[f"{stack}.{bias}"] = weight
        elif path[0] == "layers":
            part = path[2].removesuffix("_norm")
            index, their_part = parts[stack][part]
            prefix = f"{stack}.block.{path[1]}.layer.{index}"
            if path[2].endswith("_norm"):
                renamed[f"{prefix}.layer_norm.weight"] = weight
            elif path[3] == "router":
                renamed[f"{prefix}.mlp.router.classifier.weight"] = weight
            elif path[3] == "experts":
                for expert in range(EXPERTS):
                    key = f"{prefix}.mlp.experts.expert_{expert}.{path[4]}.weight"
                    renamed[key] = weight[expert].T
            else:
                renamed[f"{prefix}.{their_part}.{'.'.join(path[3:])}"] = weight
    return renamed


def make_batches() -> dict[str, Batch]:
    """Full rows, and rows of random lengths, padded."""
    generator = torch.Generator().manual_seed(1)
    shape = {"generator": generator}
    ids = torch.randint(2, SIZES["vocab_size"], (ROWS, ENCODER_LENGTH), **shape)
    labels = torch.randint(2, SIZES["vocab_size"], (ROWS, DECODER_LENGTH), **shape)
    length_B = torch.randint(ENCODER_LENGTH // 8, ENCODER_LENGTH + 1, (ROWS, 1), **shape)
    mask = (torch.arange(ENCODER_LENGTH) < length_B).long()
    label_mask = torch.arange(DECODER_LENGTH) < length_B * DECODER_LENGTH // ENCODER_LENGTH
    return {
        "full": {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels},
        "padded": {
            "input_ids": ids * mask,
            "attention_mask": mask,
            "labels": labels.masked_fill(~label_mask, -100),
        },
    }


def pack(batch: Batch) -> Batch:
    """The sequences of a padded batch in as few rows as first fit finds."""
    lengths = batch["attention_mask"].sum(1).tolist()
    rows: list[list[int]] = []
    for index in sorted(range(ROWS), key=lambda i: -lengths[i]):
        for row in rows:
            if sum(lengths[i] for i in row) + lengths[index] <= ENCODER_LENGTH:
                row.append(index)
                break
        else:
            rows.append([index])
    packed = {
        "input_ids": torch.zeros(len(rows), ENCODER_LENGTH).long(),
        "encoder_segments": torch.zeros(len(rows), ENCODER_LENGTH).long(),
        "labels": torch.full((len(rows), DECODER_LENGTH), -100),
        "decoder_segments": torch.zeros(len(rows), DECODER_LENGTH).long(),
    }
    for row, members in enumerate(rows):
        for side, keys, real in (
            ("encoder", "input_ids", batch["attention_mask"] > 0),
            ("decoder", "labels", batch["labels"] != -100),
        ):
            start = 0
            for number, index in enumerate(members, start=1):
                tokens = batch[keys][index, real[index]]
                end = start + len(tokens)
                packed[keys][row, start:end] = tokens
                packed[f"{side}_segments"][row, start:end] = number
                start = end
    return packed


def measure(name: str, batch: Batch, repeats: int) -> list[dict[str, object]]:
    """Check that the sides agree on a batch, time them in turn, and return a row for each."""
    ours, theirs = make_sides()
    sides = {
        "ours": (ours, batch),
        # its loss would include auxiliary losses, ours has their coefficients at 0
        "transformers": (theirs, {**batch, "output_router_logits": False}),
    }
    if name == "padded":
        sides["ours, packed"] = (ours, pack(batch))

    def step(side: str) -> Tensor:
        model, inputs = sides[side]
        model.zero_grad()
        output = model(**inputs)
        output.loss.backward()
        return output.logits.detach()

    counted = batch["labels"] != -100
    logits = step("ours")[counted]
    grad = ours.shared.weight.grad
    require_close(logits, step("transformers")[counted], relative=1e-4, what=f"{name}: logits")
    require_close(grad, theirs.shared.weight.grad, relative=1e-3, what=f"{name}: gradient")
    if name == "padded":
        step("ours, packed")
        require_close(ours.shared.weight.grad, grad, relative=1e-3, what=f"{name}: packed gradient")
    seconds = alternate({side: lambda side=side: step(side) for side in sides}, repeats=repeats)
    tokens = int(batch["attention_mask"].sum() + counted.sum())
    return [
        {
            "batch": name,
            "side": side,
            "ms": 1e3 * time,
            "tokens/s": round(tokens / time),
            "speed over transformers": seconds["transformers"] / time,
        }
        for side, time in seconds.items()
    ]


def main() -> None:
    """Measure, print the table, and write it with --json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the result here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    rows = [
        row for name, batch in make_batches().items() for row in measure(name, batch, args.repeats)
    ]
    print_table(rows)
    ratios = {
        f"{row['batch']}: {row['side']} / transformers": row["speed over transformers"]
        for row in rows
        if row["side"] != "transformers"
    }
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
