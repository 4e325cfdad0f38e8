"""Every named router at test size, and what is asked of its result."""

import torch

from flan_moe.routing import PRESETS, RouterConfig, build_router

D_MODEL = 6
VOCABULARY = 11


def make_router(name="top_k", seed=0, d_model=D_MODEL, **options):
    """A router of four experts (eight in four groups where it has groups) with decided logits."""
    torch.manual_seed(seed)
    preset = PRESETS[name].options
    size = {"num_experts": 4, "top_k": min(preset.get("top_k", 1), 2)}
    if preset.get("num_groups", 1) > 1:
        size |= {"num_experts": 8, "num_groups": 4, "top_groups": 2}
    if preset.get("selection") == "hash":
        size["vocab_size"] = VOCABULARY
    router = build_router(RouterConfig(name=name, **(size | options)), d_model)
    if router.weight is not None:
        torch.nn.init.normal_(router.weight)  # at its own 0.02 the router is close to undecided
    return router


def route(router, x_TD, seed=0, **more):
    """Route with token ids and sequence ids that depend on the position, drawing from ``seed``."""
    torch.manual_seed(seed)
    position_T = torch.arange(len(x_TD), device=x_TD.device)
    arguments = {"token_id_T": position_T % VOCABULARY, "sequence_T": position_T // 5, **more}
    return router(x_TD, **arguments)


def rows_of(routing, token):
    """(expert, weight) of each row of a token."""
    start, end = routing.token_offsets[token : token + 2].tolist()
    rows = routing.token_row_R[start:end]
    experts = torch.searchsorted(routing.expert_offsets, rows, right=True) - 1
    return list(zip(experts.tolist(), routing.row_weight_R[rows.long()].tolist(), strict=True))


def dense_weights(routing):
    """(T, E) weights, 0 where there is no row."""
    weight_TE = torch.zeros(routing.num_tokens, routing.num_experts, dtype=torch.float64)
    expert_R = torch.repeat_interleave(routing.expert_offsets.diff())
    index = (routing.row_token_R[: len(expert_R)].long(), expert_R)
    return weight_TE.index_put(index, routing.row_weight_R[: len(expert_R)].double())
