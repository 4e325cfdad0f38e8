"""Command line: look at a model's size, cost and routes, and let one write."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from flan_moe.model.commands.arguments import positive, text
from flan_moe.model.commands.checkpoint import check_device, load_model, load_tokenizer
from flan_moe.model.commands.convert import add_parser as add_convert
from flan_moe.model.commands.directory import check_directory
from flan_moe.model.commands.info import add_parser as add_info
from flan_moe.model.commands.routes import add_parser as add_routes
from flan_moe.model.commands.upcycle import add_parser as add_upcycle

EXAMPLES = """\
examples:
  flan-moe-model info
  flan-moe-model info flan-moe-mini
  flan-moe-model info flan-ec-base --encoder-length 2048 --decoder-length 512
  flan-moe-model generate "$MODEL_DIR" --text "Is 7 a prime number?" --beams 4
  flan-moe-model routes "$MODEL_DIR" --text "Is 7 a prime number?" --target "yes"
  flan-moe-model convert "$T5_DIR" "$NEW_DIR"
  flan-moe-model upcycle "$T5_DIR" "$NEW_DIR" --router top_k --experts 8 --top-k 2 --renormalise
    (MODEL_DIR: a directory with a model and its tokenizer, as training exports it;
    T5_DIR: a T5 v1.1 or Flan-T5 checkpoint of transformers)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``flan-moe-model``; returns the exit status, 2 for input that does not fit."""
    options = _parser().parse_args(arguments)
    # OpenMP's threads spin while they wait, by default: on cores that other programs use too, that
    # takes the time of the thread they wait for. It must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return options.run(options)
    except BrokenPipeError:  # the reader of our output, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, ValueError) as error:
        print(f"flan-moe-model: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flan-moe-model",
        description="Sizes, costs, text and routes of Flan-MoE models.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    add_info(commands)
    add_convert(commands)
    add_upcycle(commands)

    generate = commands.add_parser("generate", help="write the answer to a text")
    generate.add_argument("model", metavar="PATH", help="directory with model and tokenizer")
    generate.add_argument(
        "--text", type=text, action="append", required=True, help="input; repeat for several"
    )
    generate.add_argument("--max-new-tokens", type=positive, default=64, metavar="N")
    generate.add_argument("--beams", type=positive, default=1, metavar="N")
    generate.add_argument("--sample", action="store_true", help="sample instead of searching")
    generate.add_argument("--temperature", type=float, default=1.0, help="for --sample")
    generate.add_argument("--seed", type=_seed, default=0, help="for --sample")
    generate.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    generate.set_defaults(run=_generate)

    add_routes(commands)
    return parser


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{value}: expected 0 to 2**63 - 1")
    return value


def _generate(options: argparse.Namespace) -> int:
    check_directory(options.model, "a directory with config.json, weights and tokenizer files")
    import torch

    check_device(options.device)
    tokenizer = load_tokenizer(options.model)
    model = load_model(options.model, options.device, tokenizer)
    torch.manual_seed(options.seed)
    batch = tokenizer(options.text, return_tensors="pt", padding=True)
    search = {"temperature": options.temperature} if options.sample else {}
    out = model.generate(
        input_ids=batch["input_ids"].to(options.device),
        attention_mask=batch["attention_mask"].to(options.device),
        max_new_tokens=options.max_new_tokens,
        num_beams=options.beams,
        do_sample=options.sample,
        num_return_sequences=1,
        return_dict_in_generate=False,
        **search,
    )
    for answer in tokenizer.batch_decode(out, skip_special_tokens=True):
        print(answer.strip())
    return 0
