"""``flan-moe-model routes``: the experts that tokens took, and where two models differ."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flan_moe.model.commands.arguments import positive, text
from flan_moe.model.commands.checkpoint import check_device, load_model, load_tokenizer
from flan_moe.model.commands.configuration import load_config
from flan_moe.model.commands.directory import check_directory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from flan_moe.model.inspect import Comparison, Routes, TerminalStyle
    from flan_moe.model.modeling import FlanMoEForConditionalGeneration


def add_parser(commands: Any) -> None:
    """Register the command."""
    routes = commands.add_parser("routes", help="show which experts each token of a text took")
    routes.add_argument("model", metavar="PATH", help="directory with model and tokenizer")
    routes.add_argument("--text", type=text, required=True, help="input of the encoder")
    routes.add_argument(
        "--target", type=text, help="text of the decoder (default: the model's own answer)"
    )
    routes.add_argument(
        "--against", metavar="PATH", help="compare with another checkpoint, same text and target"
    )
    routes.add_argument("--stack", choices=("encoder", "decoder"), help="this stack only")
    routes.add_argument(
        "--layer", type=int, action="append", default=[], help="this layer only; may be repeated"
    )
    routes.add_argument("--html", type=Path, metavar="FILE", help="write a page")
    routes.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    routes.add_argument("--max-new-tokens", type=positive, default=64, metavar="N")
    routes.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="auto: on a terminal, unless NO_COLOR is set",
    )
    routes.add_argument(
        "--width", type=positive, metavar="N", help="columns (default: the terminal's)"
    )
    routes.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    routes.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Trace, print and write; see `add_parser`."""
    _check(options)
    tokenizer = load_tokenizer(options.model)
    if options.against is not None:
        _require_same_tokenizer(tokenizer, options)
    from flan_moe.model import inspect

    style = _style(options)
    if options.against is None:
        model = load_model(options.model, options.device, tokenizer)
        shown = _trace(model, tokenizer, options, options.model, target=options.target)
        lines, page = inspect.routes_lines(shown, style), inspect.routes_page
    else:
        shown = _compare(tokenizer, options)
        lines, page = inspect.comparison_lines(shown, style), inspect.comparison_page
    print("\n".join(lines))
    if options.html:
        _write(options.html, page(shown))
    if options.json:
        _write(options.json, json.dumps(shown.to_dict(), indent=1) + "\n")
    return 0


def _check(options: argparse.Namespace) -> None:
    """Everything that can be refused before a model is loaded."""
    for name in ("text", "target"):
        value = getattr(options, name)
        if value is not None and not value.strip():
            raise ValueError(f"--{name} {value!r}: expected a text")
    for model in filter(None, (options.model, options.against)):
        check_directory(model, "a directory with config.json, weights and tokenizer files")
    sparse = _sparse_layers(options.model)
    _check_selection(sparse, options)
    if options.against is not None and (other := _sparse_layers(options.against)) != sparse:
        raise ValueError(
            f"{options.model} has {_listed(sparse)}; {options.against} has {_listed(other)}; "
            "expected the same, to compare expert by expert"
        )
    for name in ("html", "json"):
        path = getattr(options, name)
        if path is None:
            continue
        # Only a regular file may be replaced: no folder, and no device such as /dev/null.
        replaced = path.exists() and not path.is_file()
        if replaced or not path.resolve().parent.is_dir():
            raise ValueError(f"--{name} {str(path)!r}: expected a file in a folder that exists")
    if options.html and options.json and options.html.resolve() == options.json.resolve():
        raise ValueError(f"--html and --json are both {str(options.html)!r}: expected two files")
    check_device(options.device)


def _sparse_layers(model: str) -> dict[tuple[str, int], int]:
    """The number of experts of each sparse layer, by stack and index."""
    from flan_moe.model.config import STACK_NAMES

    config = load_config(model)
    sparse = {
        (stack, layer): config.router_config(stack).num_experts
        for stack in STACK_NAMES
        for layer in range(config.layer_count(stack))
        if config.is_sparse(stack, layer)
    }
    if not sparse:
        raise ValueError(f"{model}: a dense model; expected one with a router in some layer")
    return sparse


def _check_selection(sparse: dict[tuple[str, int], int], options: argparse.Namespace) -> None:
    kept = [layer for stack, layer in sparse if options.stack in (None, stack)]
    if not kept:
        raise ValueError(
            f"--stack {options.stack}: dense in {options.model}, which has {_listed(sparse)}"
        )
    for layer in options.layer:
        if layer not in kept:
            stack = f" in the {options.stack}" if options.stack else ""
            raise ValueError(
                f"--layer {layer}: not sparse{stack}; {options.model} has {_listed(sparse)}"
            )


def _listed(sparse: dict[tuple[str, int], int]) -> str:
    layers = (f"{stack} {layer} ({experts})" for (stack, layer), experts in sparse.items())
    return f"sparse layers (experts) {', '.join(layers)}"


def _require_same_tokenizer(ours: PreTrainedTokenizerBase, options: argparse.Namespace) -> None:
    theirs = load_tokenizer(options.against)
    same = ours.get_vocab() == theirs.get_vocab()
    texts = [options.text] if options.target is None else [options.text, options.target]
    if not same or any(ours(t)["input_ids"] != theirs(t)["input_ids"] for t in texts):
        raise ValueError(
            f"{options.model} and {options.against} have different tokenizers (of {len(ours)} and "
            f"{len(theirs)} tokens); expected the same, to compare token by token"
        )


def _trace(
    model: FlanMoEForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    options: argparse.Namespace,
    name: str,
    *,
    target: str | Sequence[int] | None,
) -> Routes:
    from flan_moe.model.inspect import trace_routes

    routes = trace_routes(
        model,
        tokenizer,
        options.text,
        target=target,
        max_new_tokens=options.max_new_tokens,
        name=name,
    )
    return routes.select(stack=options.stack, layers=options.layer)


def _compare(tokenizer: PreTrainedTokenizerBase, options: argparse.Namespace) -> Comparison:
    from flan_moe.model.inspect import compare_routes

    model = load_model(options.model, options.device, tokenizer)
    ours = _trace(model, tokenizer, options, options.model, target=options.target)
    if ours.generated:
        # Both sides read the first model's answer in one pass: what a router does in the steps of a
        # generation may depend on there being steps, as for round robin.
        ours = _trace(model, tokenizer, options, options.model, target=ours.target_ids)
    del model  # before the other one is loaded: they may not fit both
    model = load_model(options.against, options.device, tokenizer)
    theirs = _trace(model, tokenizer, options, options.against, target=ours.target_ids)
    return compare_routes(ours, theirs)


def _style(options: argparse.Namespace) -> TerminalStyle:
    from flan_moe.model.inspect import TerminalStyle

    color = options.color == "always" or (
        options.color == "auto"
        and sys.stdout.isatty()
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM") != "dumb"
    )
    encoding = (sys.stdout.encoding or "ascii").lower().replace("-", "")
    return TerminalStyle(
        width=options.width or shutil.get_terminal_size().columns,
        color=color,
        unicode=encoding.startswith("utf"),
    )


def _write(path: Path, content: str) -> None:
    """Whole or not at all: a temporary name in the same folder, then the final one."""
    whole = path.resolve()  # a link stays a link
    partial = whole.with_name(f".{secrets.token_hex(6)}.partial")
    try:
        partial.write_text(content, encoding="utf-8")
        partial.replace(whole)
    except OSError as error:
        raise OSError(f"{path}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    print(f"wrote {path}")
