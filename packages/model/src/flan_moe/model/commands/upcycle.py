"""``flan-moe-model upcycle``: a sparse model that starts as a dense one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flan_moe.model.commands.arguments import positive
from flan_moe.model.commands.progress import ByteProgress

if TYPE_CHECKING:
    from flan_moe.model.convert import OutputChange

_DESCRIPTION = """\
Make a sparse model of a dense one (T5, Flan-T5 or dense Flan-MoE; sparse upcycling, Komatsuzaki et
al. 2023): every expert starts as the layer's network, routers are new, everything else is kept.
With --renormalise the model computes what the dense one did; the change is measured and printed.
"""

# What a decoder can use in place of routers that look at later tokens.
_IN_DECODER = {"expert_choice": "expert_choice_decoder", "flaxformer_top2": "top_k"}


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of the program."""
    parser = commands.add_parser(
        "upcycle", help="make a sparse model of a dense one", description=_DESCRIPTION
    )
    parser.add_argument("source", metavar="SRC", help="dense checkpoint")
    parser.add_argument("destination", metavar="DST", help="directory to make")
    routing = parser.add_mutually_exclusive_group(required=True)
    routing.add_argument("--preset", help="routing of this preset, sizes of SRC")
    routing.add_argument("--router", help="router of both stacks, such as top_k or switch")
    parser.add_argument("--experts", type=positive, metavar="E", help="with --router")
    parser.add_argument("--top-k", type=positive, metavar="K", help="with --router")
    parser.add_argument(
        "--sparse-every",
        type=positive,
        metavar="N",
        help="every N-th layer gets experts (default: 2, or the preset's)",
    )
    parser.add_argument(
        "--renormalise", action="store_true", help="a token's weights sum to one over its experts"
    )
    parser.add_argument(
        "--granularity",
        type=positive,
        default=1,
        metavar="G",
        help="each expert is one of G slices of the network; G times as many experts, of which a "
        "token takes G times as many",
    )
    parser.add_argument(
        "--noise", type=float, default=0.0, help="on experts, in standard deviations of the weight"
    )
    parser.add_argument(
        "--redraw", type=float, default=0.0, help="share of each expert's units drawn anew"
    )
    parser.add_argument("--seed", type=int, default=0, help="of routers, noise and redrawing")
    parser.add_argument(
        "--no-measure",
        action="store_true",
        help="do not run both models to measure the change of the output",
    )
    parser.set_defaults(run=_upcycle)


def _upcycle(options: argparse.Namespace) -> int:
    from flan_moe.model.convert import UpcycleOptions, upcycle, upcycled_config
    from flan_moe.model.convert.opened import open_as_flan_moe
    from flan_moe.model.convert.output import check_new

    check_new(Path(options.destination))
    variation = UpcycleOptions(noise=options.noise, redraw=options.redraw, seed=options.seed)
    routing = _routing(options)
    config = upcycled_config(
        open_as_flan_moe(Path(options.source)).config,
        renormalise=options.renormalise,
        granularity=options.granularity,
        **routing,
    )
    done = upcycle(
        options.source,
        options.destination,
        config,
        variation,
        measure=not options.no_measure,
        progress=ByteProgress("upcycled"),
    )
    print(f"{options.destination}: {done.num_bytes:,} bytes")
    if done.change is not None:
        _print_change(done.change)
    return 0


def _routing(options: argparse.Namespace) -> dict[str, Any]:
    from flan_moe.model.convert import preset_routing

    if options.preset is not None:
        for key in ("experts", "top_k"):
            if getattr(options, key) is not None:
                flag = "--" + key.replace("_", "-")
                raise ValueError(f"{flag} with --preset: expected it with --router only")
        routing = preset_routing(options.preset)
    else:
        if options.experts is None:
            raise ValueError("--router without --experts: expected both")
        router: dict[str, Any] = {"num_experts": options.experts}
        if options.top_k is not None:
            router["top_k"] = options.top_k
        routing = {
            "encoder_router": {"name": options.router, **router},
            "decoder_router": {"name": _IN_DECODER.get(options.router, options.router), **router},
        }
    if options.sparse_every is not None:
        routing["sparse_every"] = options.sparse_every
    return routing


def _print_change(change: OutputChange) -> None:
    print(
        f"change of the logits on {change.num_tokens} random tokens: largest {change.largest:.3g}, "
        f"mean {change.mean:.3g} (largest logit {change.logit_scale:.3g})"
    )
    if change.largest > 1e-4 * change.logit_scale:
        print(
            "note: the model does not start as the dense one; weights that sum to one "
            "(--renormalise) without noise would",
            file=sys.stderr,
        )
