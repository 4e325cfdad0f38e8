"""Names of transformers' T5 and Switch Transformers checkpoints, linked to ours.

Shape suffixes: D model width, F hidden width, E experts, H = 2F for gated activations, else F.
A `torch.nn.Linear` is the transpose of our expert stacks, and has each gated projection in two:
``wi_0`` (the activated gate) and ``wi_1``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from flan_moe.model.convert.region import Link, Region, whole

if TYPE_CHECKING:
    from flan_moe.model.config import FlanMoEConfig, StackName

HFFormat = Literal["hf-t5", "hf-switch"]

_STACKS: tuple[StackName, ...] = ("encoder", "decoder")

# Copies of the embedding that transformers writes besides ``shared.weight``.
EMBEDDING_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")

# Written by the first T5 checkpoints and used by nothing: only self-attention has positions.
UNUSED = frozenset(
    {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"},
)


def hf_links(config: FlanMoEConfig, layout: HFFormat) -> list[Link]:
    """Every weight of a model and its place in a checkpoint of transformers.

    Args:
        config: of our model.
        layout: ``"hf-t5"`` or ``"hf-switch"``, which differ in the name of a dense network.

    Returns:
        Links whose target is ours and whose source is theirs. Weights of ours that the layout has
        no name for (shared experts, for one) are in none.
    """
    links = [whole("shared.weight", "shared.weight")]
    if not config.tie_word_embeddings:
        links.append(whole("lm_head.weight", "lm_head.weight"))
    for stack in _STACKS:
        links += _stack_links(config, stack, layout)
    return links


def _stack_links(config: FlanMoEConfig, stack: StackName, layout: HFFormat) -> Iterator[Link]:
    bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    yield whole(f"{stack}.position_bias.weight", f"{stack}.{bias}")
    yield whole(f"{stack}.final_norm.weight", f"{stack}.final_layer_norm.weight")
    branches = {"self_attention": "SelfAttention"}
    if stack == "decoder":
        branches["cross_attention"] = "EncDecAttention"
    dense = {"hf-t5": "DenseReluDense", "hf-switch": "mlp"}[layout]
    for layer in range(config.layer_count(stack)):
        ours, theirs = f"{stack}.layers.{layer}", f"{stack}.block.{layer}.layer"
        for position, (our_name, their_name) in enumerate(branches.items()):
            for matrix in "qkvo":
                yield whole(
                    f"{ours}.{our_name}.{matrix}.weight",
                    f"{theirs}.{position}.{their_name}.{matrix}.weight",
                )
            yield whole(f"{ours}.{our_name}_norm.weight", f"{theirs}.{position}.layer_norm.weight")
        last = f"{theirs}.{len(branches)}"
        yield whole(f"{ours}.feed_forward_norm.weight", f"{last}.layer_norm.weight")
        width = config.ff_width(stack, layer)
        if config.is_sparse(stack, layer):
            router = config.router_config(stack)
            yield whole(
                f"{ours}.feed_forward.router.weight", f"{last}.mlp.router.classifier.weight"
            )
            for expert in range(router.num_experts):
                yield from _expert_links(
                    f"{ours}.feed_forward.experts",
                    expert,
                    f"{last}.mlp.experts.expert_{expert}",
                    width if config.is_gated else None,
                )
        else:
            yield from _dense_links(
                f"{ours}.feed_forward", f"{last}.{dense}", width if config.is_gated else None
            )


def _expert_links(ours: str, expert: int, theirs: str, gate_width: int | None) -> Iterator[Link]:
    for name, columns in input_halves(gate_width).items():
        index = (expert,) if columns is None else (expert, slice(None), columns)
        yield Link(Region(f"{ours}.wi", index), Region(f"{theirs}.{name}.weight"), transposed=True)
    yield Link(Region(f"{ours}.wo", (expert,)), Region(f"{theirs}.wo.weight"), transposed=True)


def _dense_links(ours: str, theirs: str, gate_width: int | None) -> Iterator[Link]:
    for name, rows in input_halves(gate_width).items():
        index = () if rows is None else (rows,)
        yield Link(Region(f"{ours}.wi.weight", index), Region(f"{theirs}.{name}.weight"))
    yield whole(f"{ours}.wo.weight", f"{theirs}.wo.weight")


def input_halves(gate_width: int | None) -> Mapping[str, slice | None]:
    """The input projections and their place in ours, by their names.

    Args:
        gate_width: F of a gated network, None for an ungated one.
    """
    if gate_width is None:
        return {"wi": None}
    return {"wi_0": slice(0, gate_width), "wi_1": slice(gate_width, 2 * gate_width)}
