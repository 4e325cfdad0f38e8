"""The index against an independent one, at the sizes where the way to sort changes."""

import numpy as np
import pytest
import torch

from flan_moe.routing import build, build_routing
from flan_moe.routing.order import group_offsets, narrowest_dtype, stable_order

INDEX = ("row_token_R", "row_weight_R", "expert_offsets", "token_offsets", "token_row_R")


@pytest.mark.parametrize("bound", [0, 7, 255, 256, 32_767, 32_768, 1 << 31, 1 << 40])
@pytest.mark.parametrize("count", [0, 1, 1_000, 8_192, 32_767, 32_768])
def test_stable_order_is_numpys(bound, count):
    key_N = np.random.default_rng(0).integers(0, bound + 1, count)
    key_N[: count // 2] = np.where(key_N[: count // 2] % 2 == 0, bound, 0)  # many equals
    order = stable_order(torch.from_numpy(key_N), bound)
    assert np.array_equal(order.numpy(), np.argsort(key_N, kind="stable"))


def test_narrowest_dtype_holds_its_bound():
    for bound in (255, 256, 32_767, 32_768, (1 << 31) - 1, 1 << 31):
        narrowest = narrowest_dtype(bound)
        assert torch.tensor(bound).to(narrowest).item() == bound


def test_group_offsets_leaves_out_entries_without_a_group():
    assert group_offsets(torch.tensor([2, 0, 3, 2, 3]), 3).tolist() == [0, 1, 1, 3]
    assert group_offsets(torch.tensor([], dtype=torch.int64), 2).tolist() == [0, 0, 0]


def test_an_expert_that_does_not_exist_is_refused_where_it_is_kept():
    expert_N = torch.tensor([257, 1])  # in one byte, 257 is 1
    rows = {"token_N": torch.arange(2), "expert_N": expert_N, "weight_N": torch.ones(2)}
    sizes = {"num_tokens": 2, "num_experts": 4, "losses": {}, "stats": {}}
    with pytest.raises(RuntimeError, match="index 257 is out of bounds"):
        build_routing(**rows, **sizes)
    routing = build_routing(**rows, **sizes, keep_N=torch.tensor([False, True]))
    assert routing.expert_offsets.tolist() == [0, 0, 1, 1, 1]


def random_list(*, tokens, experts, choices, keep, shuffled, seed=0):
    generator = torch.Generator().manual_seed(seed)
    first_T1 = torch.randint(0, experts, (tokens, 1), generator=generator)
    expert_N = ((first_T1 + 3 * torch.arange(choices)) % experts).reshape(-1)
    token_N = torch.arange(tokens).repeat_interleave(choices)
    keep_N = torch.rand(len(token_N), generator=generator) < keep if keep < 1 else None
    if shuffled:
        order = torch.randperm(len(token_N), generator=generator)
        token_N, expert_N = token_N[order], expert_N[order]
        keep_N = None if keep_N is None else keep_N[order]
    return {
        "token_N": token_N,
        "expert_N": expert_N,
        "weight_N": torch.rand(len(token_N), generator=generator),
        "keep_N": keep_N,
        "num_tokens": tokens,
        "num_experts": experts,
        "losses": {},
        "stats": {},
    }


@pytest.mark.parametrize("trim", [True, False])
@pytest.mark.parametrize("shuffled", [True, False])
@pytest.mark.parametrize("keep", [0.0, 0.7, 1.0])
@pytest.mark.parametrize(
    ("tokens", "experts", "choices"),
    [(1, 1, 1), (5_000, 8, 2), (9_000, 300, 1), (40_000, 8, 1), (40_000, 255, 2), (300, 2_048, 40)],
)
def test_rows_are_in_lexical_order(tokens, experts, choices, keep, shuffled, trim):
    case = random_list(
        tokens=tokens, experts=experts, choices=choices, keep=keep, shuffled=shuffled
    )
    routing = build_routing(**case, trim=trim)
    routing.validate()
    kept = np.arange(len(case["token_N"]))
    if case["keep_N"] is not None:
        kept = kept[case["keep_N"].numpy()]
    token, expert = case["token_N"].numpy()[kept], case["expert_N"].numpy()[kept]
    order = np.lexsort((token, expert))
    count = len(kept)
    assert routing.num_rows == (count if trim else len(case["token_N"]))
    assert np.array_equal(routing.row_token_R.numpy()[:count], token[order])
    expected_weight = case["weight_N"].numpy()[kept][order]
    assert np.array_equal(routing.row_weight_R.numpy()[:count], expected_weight)
    assert not routing.row_weight_R[count:].any()
    assert ((routing.row_token_R >= 0) & (routing.row_token_R < tokens)).all()
    loads = np.bincount(expert, minlength=experts)
    assert np.array_equal(routing.expert_offsets.numpy(), np.concatenate([[0], loads.cumsum()]))


@pytest.mark.parametrize("shuffled", [True, False])
@pytest.mark.parametrize("keep", [0.0, 0.7, 1.0])
@pytest.mark.parametrize(("tokens", "experts", "choices"), [(0, 3, 1), (1, 8, 2), (8, 256, 4)])
def test_a_few_assignments_are_indexed_as_many_are(
    tokens, experts, choices, keep, shuffled, monkeypatch
):
    case = random_list(
        tokens=tokens, experts=experts, choices=choices, keep=keep, shuffled=shuffled
    )
    few = build_routing(**case)
    few.validate()
    monkeypatch.setattr(build, "_index_few_rows", None)  # whoever calls it now fails
    monkeypatch.setattr(build, "_FEW_ASSIGNMENTS", -1)
    many = build_routing(**case)
    for name in INDEX:
        assert getattr(few, name).dtype == getattr(many, name).dtype
        assert torch.equal(getattr(few, name), getattr(many, name)), name
    for name, value in many.stats.items():
        assert torch.equal(few.stats[name], value), name


@pytest.mark.parametrize("trim", [True, False])
def test_no_key_overflows_with_a_million_tokens_and_two_thousand_experts(trim):
    tokens, experts = 1 << 20, 2_048
    token_N = torch.tensor([tokens - 1, 0, tokens - 1, tokens - 2])
    expert_N = torch.tensor([experts - 1, experts - 1, 0, experts - 1])
    routing = build_routing(
        token_N=token_N,
        expert_N=expert_N,
        weight_N=torch.ones(4),
        num_tokens=tokens,
        num_experts=experts,
        losses={},
        stats={},
        trim=trim,
    )
    routing.validate()
    assert routing.row_token_R.tolist() == [tokens - 1, 0, tokens - 2, tokens - 1]
    assert routing.expert_offsets[[1, -2, -1]].tolist() == [1, 1, 4]


def test_builds_in_one_graph_without_trimming():
    case = random_list(tokens=50, experts=4, choices=2, keep=0.7, shuffled=True)

    def build(token_N, expert_N, weight_N, keep_N):
        tensors = {"token_N": token_N, "expert_N": expert_N, "weight_N": weight_N, "keep_N": keep_N}
        routing = build_routing(**{**case, **tensors}, trim=False)
        return tuple(getattr(routing, name) for name in INDEX)

    tensors = [case[name] for name in ("token_N", "expert_N", "weight_N", "keep_N")]
    compiled = torch.compile(build, fullgraph=True, backend="aot_eager")
    for ours, expected in zip(compiled(*tensors), build(*tensors), strict=True):
        assert torch.equal(ours, expected)
