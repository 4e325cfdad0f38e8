"""``flan-moe-model info``: how large a model is and what it costs, before it exists."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from flan_moe.model.commands.arguments import positive
from flan_moe.model.commands.configuration import find_config

if TYPE_CHECKING:
    from flan_moe.model.accounting import FlopsPerToken
    from flan_moe.model.config import FlanMoEConfig, StackName

_OPTIMIZER_TITLES = {"adamw": "AdamW", "adafactor": "Adafactor"}


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of ``flan-moe-model``."""
    info = commands.add_parser(
        "info", help="parameters, FLOPs per token, memory and layers of a model"
    )
    info.add_argument(
        "model",
        nargs="?",
        metavar="PRESET|PATH",
        help="a preset, or a directory with config.json; without it, all presets",
    )
    info.add_argument("--encoder-length", type=positive, default=512, metavar="N")
    info.add_argument("--decoder-length", type=positive, default=128, metavar="N")
    info.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if options.model is None:
        _list_presets()
        return 0
    config = find_config(options.model)
    print(options.model)
    _print_shape(config)
    _print_parameters(config)
    _print_flops(config, options.encoder_length, options.decoder_length)
    _print_memory(config, options.encoder_length, options.decoder_length)
    return 0


def _list_presets() -> None:
    from flan_moe.model.accounting import count_parameters, flops_per_token
    from flan_moe.model.presets import PRESETS, flan_moe_config

    print(f"{'':<54}{'GFLOPs per token':>34}")
    print(
        f"{'preset':<20} {'parameters':>15} {'active':>14} {'router':>12} "
        f"{'encoder':>8} {'decoder':>8} {'mean':>8}"
    )
    for name in PRESETS:
        config = flan_moe_config(name)
        count = count_parameters(config)
        flops = flops_per_token(config, encoder_length=0, decoder_length=0, include_head=False)
        costs = " ".join(f"{cost:>8.4f}" for cost in _by_stack(flops))
        print(f"{name:<20} {count.total:>15,} {count.active:>14,} {count.router:>12,} {costs}")
    print("active and FLOPs: without embedding, head and attention scores")


def _print_shape(config: FlanMoEConfig) -> None:
    print(f"  d_model {config.d_model}, {config.num_heads} heads of {config.d_kv}")
    experts = "" if config.expert_d_ff is None else f", experts of width {config.expert_d_ff}"
    width = f"{config.d_ff}{experts}"
    print(f"  {config.activation} networks of width {width}, vocabulary {config.vocab_size}")
    for stack in ("encoder", "decoder"):
        print(f"  {stack}: {_describe_stack(config, stack)}")


def _describe_stack(config: FlanMoEConfig, stack: StackName) -> str:
    layers = config.layer_count(stack)
    router = config.router_config(stack)
    if router is None:
        return f"{layers} dense layers"
    sparse = [layer for layer in range(layers) if config.is_sparse(stack, layer)]
    choice = f"top-{router.top_k}" if router.name == "top_k" else router.name.replace("_", " ")
    where = ", ".join(map(str, sparse))
    extra = ", each before a dense network" if config.extra_feed_forward else ""
    return f"{layers} layers; {router.num_experts} experts, {choice}, in layers {where}{extra}"


def _print_parameters(config: FlanMoEConfig) -> None:
    from flan_moe.model.accounting import count_parameters
    from flan_moe.model.twin import dense_twin

    count = count_parameters(config)
    print("parameters")
    for name in ("total", "active", "embedding", "router"):
        print(f"  {name:<10} {getattr(count, name):>16,}")
    print(f"  dense twin {count_parameters(dense_twin(config)).total:>16,}")


def _print_flops(config: FlanMoEConfig, encoder_length: int, decoder_length: int) -> None:
    from flan_moe.model.accounting import flops_per_token
    from flan_moe.model.twin import dense_twin

    lengths = {"encoder_length": encoder_length, "decoder_length": decoder_length}
    weights = flops_per_token(config, encoder_length=0, decoder_length=0, include_head=False)
    whole = flops_per_token(config, **lengths)
    twin = flops_per_token(dense_twin(config), **lengths)
    print("GFLOPs per token, forward, two per multiply-accumulate")
    _print_row("", "encoder", "decoder", "mean")
    _print_row("layers' weights (1)", *map(_figure, _by_stack(weights)))
    for title, flops in (("everything (2)", whole), ("dense twin (2)", twin)):
        costs = (flops.encoder, flops.decoder, flops.mean)
        _print_row(title, *(_figure(cost / 1e9) for cost in costs))
    print("  (1) of each stack's layers, without head and attention scores")
    print(
        f"  (2) with both, at {encoder_length} encoder and {decoder_length} decoder tokens; keys "
        "and values of\n      cross-attention count per encoder token, where they are computed"
    )


def _by_stack(flops: FlopsPerToken) -> tuple[float, float, float]:
    """GFLOPs of encoder, decoder and their mean, as papers state them."""
    return flops.encoder_stack / 1e9, flops.decoder_stack / 1e9, flops.mean / 1e9


def _print_memory(config: FlanMoEConfig, encoder_length: int, decoder_length: int) -> None:
    import torch

    from flan_moe.model.memory import OPTIMIZERS, cache_bytes, training_memory, weight_bytes

    print("GiB to train")
    _print_row("", "weights", "gradients", "optimizer", "total")
    for optimizer in OPTIMIZERS:
        memory = training_memory(config, optimizer)
        parts = (memory.weights, memory.gradients, memory.optimizer, memory.total)
        _print_row(_OPTIMIZER_TITLES[optimizer], *(_figure(part / 2**30) for part in parts))
    print("  all in float32, on one device; without activations and the copies of autocast")
    print("  Adafactor without momentum, as T5X factors: matrices of at least 128 x 128")
    print("GiB to serve")
    _print_row("", "weights", "cache")
    for dtype in (torch.float32, torch.bfloat16):
        cache = cache_bytes(
            config, dtype, encoder_length=encoder_length, decoder_length=decoder_length
        )
        _print_row(
            str(dtype).removeprefix("torch."),
            _figure(weight_bytes(config, dtype) / 2**30),
            _figure(cache / 2**30),
        )
    print(
        f"  cache: keys and values of one sequence of {encoder_length} encoder and "
        f"{decoder_length} decoder tokens"
    )


def _print_row(title: str, *cells: str) -> None:
    print(f"  {title:<19}" + "".join(f" {cell:>10}" for cell in cells))


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
