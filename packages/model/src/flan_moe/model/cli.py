"""Command line: look at a model's size and cost, and let one write."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flan_moe.model.config import FlanMoEConfig

EXAMPLES = """\
examples:
  flan-moe-model info
  flan-moe-model info flan-moe-mini
  flan-moe-model info flan-ec-base --encoder-length 2048 --decoder-length 512
  flan-moe-model generate "$MODEL_DIR" --text "Is 7 a prime number?" --beams 4
    (MODEL_DIR: a directory with a model and its tokenizer, as training exports it)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``flan-moe-model``; returns the exit status, 2 for input that does not fit."""
    options = _parser().parse_args(arguments)
    # OpenMP's threads spin while they wait, by default: on cores that other programs use too, that
    # takes the time of the thread they wait for. It must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return options.run(options)
    except (OSError, ValueError) as error:
        print(f"flan-moe-model: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flan-moe-model",
        description="Sizes, costs and text of Flan-MoE models.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    info = commands.add_parser("info", help="parameters, FLOPs per token and layers of a model")
    info.add_argument(
        "model",
        nargs="?",
        metavar="PRESET|PATH",
        help="a preset, or a directory with config.json; without it, all presets",
    )
    info.add_argument("--encoder-length", type=_positive, default=512, metavar="N")
    info.add_argument("--decoder-length", type=_positive, default=128, metavar="N")
    info.set_defaults(run=_info)

    generate = commands.add_parser("generate", help="write the answer to a text")
    generate.add_argument("model", metavar="PATH", help="directory with model and tokenizer")
    generate.add_argument(
        "--text", action="append", required=True, help="input; repeat for several"
    )
    generate.add_argument("--max-new-tokens", type=_positive, default=64, metavar="N")
    generate.add_argument("--beams", type=_positive, default=1, metavar="N")
    generate.add_argument("--sample", action="store_true", help="sample instead of searching")
    generate.add_argument("--temperature", type=float, default=1.0, help="for --sample")
    generate.add_argument("--seed", type=_seed, default=0, help="for --sample")
    generate.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    generate.set_defaults(run=_generate)
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: expected at least 1")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{value}: expected 0 to 2**63 - 1")
    return value


def _info(options: argparse.Namespace) -> int:
    if options.model is None:
        return _list_presets()
    from flan_moe.model.accounting import count_parameters, flops_per_token
    from flan_moe.model.twin import dense_twin

    config = _find_config(options.model)
    lengths = {
        "encoder_length": options.encoder_length,
        "decoder_length": options.decoder_length,
    }
    count = count_parameters(config)
    flops = flops_per_token(config, **lengths)
    bare = flops_per_token(config, encoder_length=0, decoder_length=0, include_head=False)
    twin = dense_twin(config)
    print(options.model)
    print(f"  d_model {config.d_model}, {config.num_heads} heads of {config.d_kv}")
    print(f"  {config.activation} networks of width {config.d_ff}, vocabulary {config.vocab_size}")
    for stack in ("encoder", "decoder"):
        print(f"  {stack}: {_describe_stack(config, stack)}")
    print("parameters")
    for name in ("total", "active", "embedding", "router"):
        print(f"  {name:<10} {getattr(count, name):>16,}")
    print(f"  dense twin {count_parameters(twin).total:>16,}")
    print("forward FLOPs per token (two per multiply-accumulate)")
    print(f"  encoder    {flops.encoder:>16,.0f}  at {options.encoder_length} encoder tokens")
    print(f"  decoder    {flops.decoder:>16,.0f}  at {options.decoder_length} decoder tokens")
    print(f"  mean       {flops.mean:>16,.0f}")
    print(f"  mean       {bare.mean:>16,.0f}  without head and attention scores")
    print(f"  dense twin {flops_per_token(twin, **lengths).mean:>16,.0f}")
    return 0


def _list_presets() -> int:
    from flan_moe.model.accounting import count_parameters, flops_per_token
    from flan_moe.model.presets import PRESETS, flan_moe_config

    print(f"{'preset':<20} {'parameters':>15} {'active':>13} {'MFLOPs/token':>13}")
    for name in PRESETS:
        config = flan_moe_config(name)
        count = count_parameters(config)
        flops = flops_per_token(config, encoder_length=0, decoder_length=0, include_head=False)
        print(f"{name:<20} {count.total:>15,} {count.active:>13,} {flops.mean / 1e6:>13,.1f}")
    print("active and FLOPs: without embedding, head and attention scores")
    return 0


def _describe_stack(config: FlanMoEConfig, stack: str) -> str:
    layers = config.layer_count(stack)
    router = config.router_config(stack)
    if router is None:
        return f"{layers} dense layers"
    sparse = [layer for layer in range(layers) if config.is_sparse(stack, layer)]
    choice = f"top-{router.top_k}" if router.name == "top_k" else router.name.replace("_", " ")
    where = ", ".join(map(str, sparse))
    return f"{layers} layers; {router.num_experts} experts, {choice}, in layers {where}"


def _find_config(model: str) -> FlanMoEConfig:
    from flan_moe.model.config import FlanMoEConfig
    from flan_moe.model.presets import PRESETS, flan_moe_config

    if model in PRESETS:
        return flan_moe_config(model)
    _check_directory(model, f"a preset ({', '.join(PRESETS)}) or a directory with config.json")
    return FlanMoEConfig.from_pretrained(model)


def _check_directory(model: str, expected: str) -> None:
    """Refuse what is not a local Flan-MoE checkpoint, before anything looks for it on a network."""
    path = Path(model) / "config.json"
    if not path.is_file():
        raise ValueError(f"{model!r}: expected {expected}")
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, RecursionError, AttributeError) as error:
        raise ValueError(f"{path}: expected a JSON object: {error}") from error
    if found != "flan_moe":
        raise ValueError(f"{path}: model_type={found!r}: expected 'flan_moe'")


def _generate(options: argparse.Namespace) -> int:
    _check_directory(options.model, "a directory with config.json, weights and tokenizer files")
    import torch
    from transformers import AutoTokenizer

    from flan_moe.model.modeling import FlanMoEForConditionalGeneration

    _check_device(options.device)
    tokenizer = _load(options.model, "tokenizer", AutoTokenizer, trust_remote_code=False)
    model, info = _load(
        options.model, "model", FlanMoEForConditionalGeneration, output_loading_info=True
    )
    # transformers would go on with random weights, or without those that it has no place for.
    for key, problem in (
        ("missing_keys", "weights are missing"),
        ("unexpected_keys", "weights have no place in the model that config.json describes"),
    ):
        if info[key]:
            raise ValueError(
                f"{options.model}: {len(info[key])} {problem}, the first is {min(info[key])}"
            )
    model = model.eval().to(options.device)
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"{options.model}: the tokenizer has {len(tokenizer)} tokens, the model a vocabulary "
            f"of {model.config.vocab_size}"
        )
    torch.manual_seed(options.seed)
    batch = tokenizer(options.text, return_tensors="pt", padding=True)
    search = {"temperature": options.temperature} if options.sample else {}
    out = model.generate(
        input_ids=batch["input_ids"].to(options.device),
        attention_mask=batch["attention_mask"].to(options.device),
        max_new_tokens=options.max_new_tokens,
        num_beams=options.beams,
        do_sample=options.sample,
        **search,
    )
    for answer in tokenizer.batch_decode(out, skip_special_tokens=True):
        print(answer.strip())
    return 0


def _check_device(name: str) -> None:
    import torch

    try:
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"--device {name!r}: expected one that torch can use here, such as 'cpu' ({reason})"
        ) from None


def _load(path: str, what: str, loader: Any, **settings: Any) -> Any:
    try:
        return loader.from_pretrained(path, local_files_only=True, **settings)
    except Exception as error:  # transformers and safetensors raise many unrelated types
        raise ValueError(
            f"{path}: cannot load a {what}: {type(error).__name__}: {error}"
        ) from error
