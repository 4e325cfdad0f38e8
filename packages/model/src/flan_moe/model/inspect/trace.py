"""Run a text through a model and keep what its routers decide.

Shape suffixes: R rows (a token sent to an expert), L decoder positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from flan_moe.model.inspect.pieces import token_pieces
from flan_moe.model.inspect.routes import LayerRoutes, Routes
from flan_moe.model.modeling import FlanMoEForConditionalGeneration
from flan_moe.routing import Router, Routing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def trace_routes(
    model: FlanMoEForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    target: str | Sequence[int] | None = None,
    max_new_tokens: int = 64,
    name: str = "model",
) -> Routes:
    """The experts of every token of a text, as the model's routers chose them.

    With a target: one forward pass. Without: the model generates its answer greedily, and the
    decoder's routes are those of the cached steps that wrote it. The model runs in the mode that
    it is in; call ``model.eval()`` for what it does in use.

    Args:
        model: with at least one sparse layer.
        tokenizer: of the model.
        text: input of the encoder.
        target: text of the decoder; or its token ids, the last one included.
        max_new_tokens: longest answer, where there is no target.
        name: of the model, for messages and pages.

    Returns:
        Tokens, experts and weights.

    Raises:
        ValueError: for a dense model, a tokenizer with more tokens than the model's vocabulary,
            or a text or target without content.
    """
    routers = _routers(model, name)
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"{name}: the tokenizer has {len(tokenizer)} tokens, the model a vocabulary of "
            f"{model.config.vocab_size}"
        )
    device = model.device
    source = encode(tokenizer, text, "text")
    input_ids = torch.tensor([source], device=device)
    target_ids = encode(tokenizer, target, "target") if isinstance(target, str) else target
    with torch.no_grad(), _recording(routers) as recorded:
        if target_ids is None:
            answer = model.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                max_new_tokens=max_new_tokens,
                num_beams=1,
                num_return_sequences=1,
                do_sample=False,
                use_cache=True,
                return_dict_in_generate=False,
            )
            decoder_ids, target_ids = answer[0, :-1].tolist(), answer[0, 1:].tolist()
        else:
            labels_1L = torch.tensor([list(target_ids)], device=device)
            shifted_1L = model.prepare_decoder_input_ids_from_labels(labels_1L)
            model(input_ids=input_ids, decoder_input_ids=shifted_1L)
            decoder_ids = shifted_1L[0].tolist()
    return Routes(
        model=name,
        text=text,
        target=target
        if isinstance(target, str)
        else tokenizer.decode(list(target_ids), skip_special_tokens=True),
        target_ids=tuple(target_ids),
        generated=target is None,
        encoder=token_pieces(tokenizer, source),
        decoder=token_pieces(tokenizer, decoder_ids),
        layers=tuple(layer_routes(key, recorded[key]) for key in routers),
    )


def layer_routes(router_name: str, calls: Sequence[Routing]) -> LayerRoutes:
    """What a router decided in one or several calls, whose tokens follow each other.

    Args:
        router_name: in the model, such as ``encoder.layers.1.feed_forward.router``.
        calls: its results. Waits for the device.
    """
    stack, _, layer, *_ = router_name.split(".")
    experts: list[tuple[int, ...]] = []
    weights: list[tuple[float, ...]] = []
    for routing in calls:
        chosen = _by_token(routing)
        experts += [tuple(expert for _, expert in rows) for rows in chosen]
        weights += [tuple(-negative for negative, _ in rows) for rows in chosen]
    return LayerRoutes(
        stack=stack,
        layer=int(layer),
        num_experts=calls[0].num_experts,
        experts=tuple(experts),
        weights=tuple(weights),
        router_entropy=_mean_entropy(calls),
    )


def encode(tokenizer: PreTrainedTokenizerBase, text: str, what: str) -> list[int]:
    """Token ids of a text as the tokenizer ends it.

    Raises:
        ValueError: if there is nothing in it.
    """
    ids = tokenizer(text_target=text) if what == "target" else tokenizer(text)
    if not text.strip() or not ids["input_ids"]:
        raise ValueError(f"{what} {text!r}: expected at least one token")
    return list(ids["input_ids"])


def _by_token(routing: Routing) -> list[list[tuple[float, int]]]:
    """For each token its (negative weight, expert), sorted: the heaviest expert first."""
    rows = int(routing.expert_offsets[-1])
    expert_R = torch.repeat_interleave(routing.expert_offsets.diff().long()).tolist()
    weight_R = routing.row_weight_R[:rows].tolist()
    token_R = routing.row_token_R[:rows].tolist()
    chosen: list[list[tuple[float, int]]] = [[] for _ in range(routing.num_tokens)]
    for token, weight, expert in zip(token_R, weight_R, expert_R, strict=True):
        chosen[token].append((-weight, expert))
    return [sorted(entries) for entries in chosen]


def _mean_entropy(calls: Sequence[Routing]) -> float:
    total = sum(float(r.stats["router_entropy"]) * r.num_tokens for r in calls)
    return total / sum(routing.num_tokens for routing in calls)


def _routers(model: nn.Module, name: str) -> dict[str, Router]:
    """The routers by name, encoder first."""
    routers = {key: part for key, part in model.named_modules() if isinstance(part, Router)}
    if not routers:
        raise ValueError(f"{name}: a dense model; expected one with a router in some layer")
    return dict(sorted(routers.items(), key=lambda item: item[0].startswith("decoder")))


@contextmanager
def _recording(routers: dict[str, Router]) -> Iterator[dict[str, list[Routing]]]:
    """Keep what each router returns inside the block.

    The output of the model has the same routings, but `generate` does not hand it out.
    """
    recorded: dict[str, list[Routing]] = {key: [] for key in routers}
    with ExitStack() as hooks:
        for key, router in routers.items():

            def keep(_m: nn.Module, _a: object, routing: Routing, key: str = key) -> None:
                recorded[key].append(routing)

            hooks.callback(router.register_forward_hook(keep).remove)
        yield recorded
