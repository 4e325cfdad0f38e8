"""Names of flat T5X checkpoints (flaxformer's layers), linked to ours.

A Flax kernel is (in, out), the transpose of a `torch.nn.Linear`; expert kernels carry a leading
expert axis and have our orientation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from flan_moe.model.convert.hf_names import input_halves
from flan_moe.model.convert.region import Link, Region, whole

if TYPE_CHECKING:
    from flan_moe.model.config import FlanMoEConfig, StackName

PREFIX = "target/"

_STACKS: tuple[StackName, ...] = ("encoder", "decoder")
_MATRICES = {"q": "query", "k": "key", "v": "value", "o": "out"}


def t5x_links(config: FlanMoEConfig) -> list[Link]:
    """Every weight of a model and its place in a flat T5X checkpoint.

    Args:
        config: of our model.

    Returns:
        Links whose target is ours and whose source is theirs.
    """
    links = [whole("shared.weight", f"{PREFIX}token_embedder/embedding")]
    if not config.tie_word_embeddings:
        links.append(
            whole("lm_head.weight", f"{PREFIX}decoder/logits_dense/kernel", transposed=True)
        )
    for stack in _STACKS:
        links += _stack_links(config, stack)
    return links


def _stack_links(config: FlanMoEConfig, stack: StackName) -> Iterator[Link]:
    root = f"{PREFIX}{stack}"
    bias = f"{root}/relpos_bias/rel_embedding"
    yield whole(f"{stack}.position_bias.weight", bias, transposed=True)
    yield whole(f"{stack}.final_norm.weight", f"{root}/{stack}_norm/scale")
    branches = {
        "encoder": {"self_attention": ("attention", "pre_attention_layer_norm")},
        "decoder": {
            "self_attention": ("self_attention", "pre_self_attention_layer_norm"),
            "cross_attention": ("encoder_decoder_attention", "pre_cross_attention_layer_norm"),
        },
    }[stack]
    for layer in range(config.layer_count(stack)):
        ours, theirs = f"{stack}.layers.{layer}", f"{root}/layers_{layer}"
        for our_name, (their_name, norm) in branches.items():
            for matrix, kernel in _MATRICES.items():
                yield whole(
                    f"{ours}.{our_name}.{matrix}.weight",
                    f"{theirs}/{their_name}/{kernel}/kernel",
                    transposed=True,
                )
            yield whole(f"{ours}.{our_name}_norm.weight", f"{theirs}/{norm}/scale")
        yield whole(f"{ours}.feed_forward_norm.weight", f"{theirs}/pre_mlp_layer_norm/scale")
        yield from _feed_forward_links(config, stack, layer, ours, theirs)


def _feed_forward_links(
    config: FlanMoEConfig, stack: StackName, layer: int, ours: str, theirs: str
) -> Iterator[Link]:
    halves = input_halves(config.ff_width(stack, layer) if config.is_gated else None)
    if not config.is_sparse(stack, layer):
        for name, rows in halves.items():
            target = Region(f"{ours}.feed_forward.wi.weight", () if rows is None else (rows,))
            yield Link(target, Region(f"{theirs}/mlp/{name}/kernel"), transposed=True)
        yield whole(f"{ours}.feed_forward.wo.weight", f"{theirs}/mlp/wo/kernel", transposed=True)
        return
    yield whole(
        f"{ours}.feed_forward.router.weight",
        f"{theirs}/mlp/router/router_weights/w/kernel",
        transposed=True,
    )
    experts = f"{ours}.feed_forward.experts"
    for expert in range(config.router_config(stack).num_experts):
        for name, columns in halves.items():
            index = (expert,) if columns is None else (expert, slice(None), columns)
            source = Region(f"{theirs}/mlp/expert/{name}/kernel", (expert,))
            yield Link(Region(f"{experts}.wi", index), source)
        source = Region(f"{theirs}/mlp/expert/wo/kernel", (expert,))
        yield Link(Region(f"{experts}.wo", (expert,)), source)
