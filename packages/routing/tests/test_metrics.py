"""Routing metrics against slow oracles, at their defined extremes, and under permutations."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from host_reads import HostReads
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_moe.routing import RouterConfig, build_router, build_routing
from flan_moe.routing.metrics import (
    chosen_experts,
    co_activation,
    dead_experts,
    disagreement,
    domain_specialisation,
    dropped_assignments,
    dropped_tokens,
    expert_counts,
    expert_saturation,
    expert_usage,
    expert_vocabulary_specialisation,
    load_cv,
    load_share,
    max_violation,
    normalised_mutual_information,
    router_margin,
    routing_kl,
    usage_entropy,
    vocabulary_specialisation,
)

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@st.composite
def choices(draw, max_tokens=12, max_experts=6):
    """(list of sets of experts, E): tokens choose any number of experts, none included."""
    num_experts = draw(st.integers(1, max_experts))
    one = st.sets(st.integers(0, num_experts - 1))
    return draw(st.lists(one, max_size=max_tokens)), num_experts


def table(sets, width=None):
    """The (T, K) table of a list of sets."""
    width = width or max([1, *map(len, sets)])
    rows = [sorted(s) + [-1] * (width - len(s)) for s in sets]
    return torch.tensor(rows, dtype=torch.int64).reshape(len(sets), width)


def routing_of(sets, num_experts, *, weights=None, trim=None):
    """A routing with these experts per token; untrimmed, it has refused rows as well."""
    pairs = [(t, e) for t, experts in enumerate(sets) for e in sorted(experts)]
    refused = [] if trim is not False else [(t, 0) for t in range(len(sets))]
    token, expert = torch.tensor(pairs + refused, dtype=torch.int64).reshape(-1, 2).T
    keep_N = torch.arange(len(pairs) + len(refused)) < len(pairs)
    weight_N = torch.rand(len(keep_N)) if weights is None else torch.tensor(weights)
    return build_routing(
        token_N=token,
        expert_N=expert,
        weight_N=weight_N.float(),
        keep_N=keep_N,
        num_tokens=len(sets),
        num_experts=num_experts,
        losses={},
        stats={},
        trim=trim,
    )


def spoil_unused_rows(routing):
    """The contract gives no meaning to what lies past the true row count."""
    rows = int(routing.expert_offsets[-1])
    routing.row_token_R[rows:] = 2**31 - 1
    routing.token_row_R[rows:] = -7
    routing.row_weight_R[rows:] = torch.nan
    return routing


class TestChosenExperts:
    @given(choices())
    @settings(max_examples=60, deadline=None)
    def test_lists_each_tokens_experts_in_ascending_order(self, case):
        sets, num_experts = case
        assert torch.equal(chosen_experts(routing_of(sets, num_experts)), table(sets))

    @given(choices())
    @settings(max_examples=60, deadline=None)
    def test_looks_at_nothing_past_the_true_row_count(self, case):
        sets, num_experts = case
        routing = spoil_unused_rows(routing_of(sets, num_experts, trim=False))
        for best_first in (False, True):
            chosen_TK = chosen_experts(routing, num_experts, best_first=best_first)
            assert torch.equal(
                chosen_TK.sort(descending=True).values,
                table(sets, num_experts).sort(descending=True).values,
            )

    def test_max_choices_pads_or_keeps_the_first(self):
        routing = routing_of([{2, 0, 3}, set(), {1}], 4)
        assert chosen_experts(routing, 4).tolist() == [
            [0, 2, 3, -1],
            [-1, -1, -1, -1],
            [1, -1, -1, -1],
        ]
        assert chosen_experts(routing, 2).tolist() == [[0, 2], [-1, -1], [1, -1]]
        with pytest.raises(ValueError, match="max_choices=0"):
            chosen_experts(routing, 0)

    def test_best_first_orders_by_weight_then_index(self):
        routing = routing_of([{0, 1, 2}, {0, 3}], 4, weights=[0.2, 0.5, 0.2, 0.1, 0.9])
        assert chosen_experts(routing, best_first=True).tolist() == [[1, 0, 2], [3, 0, -1]]
        assert chosen_experts(routing, 1, best_first=True).tolist() == [[1], [3]]

    @pytest.mark.parametrize("name", ["switch", "top_k", "expert_choice"])
    def test_gives_a_router_back_its_own_rows(self, name):
        torch.manual_seed(0)
        top_k = 2 if name == "top_k" else 1
        config = RouterConfig(name=name, num_experts=4, top_k=top_k, capacity_factor=0.8)
        router = build_router(config, 6)
        torch.nn.init.normal_(router.weight)
        x_TD = torch.randn(40, 6)
        routing = router(x_TD)
        again = router(x_TD, forced_experts=chosen_experts(routing))
        assert torch.equal(again.row_token_R, routing.row_token_R)
        assert torch.equal(again.expert_offsets, routing.expert_offsets)

    def test_no_tokens(self):
        assert chosen_experts(routing_of([], 3)).shape == (0, 1)
        assert chosen_experts(routing_of([], 3), 2).shape == (0, 2)
        assert chosen_experts(routing_of([set(), set()], 3)).tolist() == [[-1], [-1]]


LOAD_METRICS = {
    # metric: values when E = 4 is balanced, when one expert takes everything, for no load
    max_violation: (0.0, 3.0, 0.0),
    load_cv: (0.0, math.sqrt(3), 0.0),
    usage_entropy: (1.0, 0.0, 0.0),
    expert_usage: (4.0, 1.0, 0.0),
    dead_experts: (0.0, 3.0, 4.0),
}


class TestLoad:
    @pytest.mark.parametrize("metric", LOAD_METRICS)
    def test_extremes(self, metric):
        load_LE = torch.tensor([[5.0, 5, 5, 5], [0, 7, 0, 0], [0, 0, 0, 0]])
        torch.testing.assert_close(metric(load_LE), torch.tensor(LOAD_METRICS[metric]), **CLOSE)
        single = metric(torch.tensor([3.0]))
        balanced_single = {usage_entropy: 1.0, expert_usage: 1.0}
        assert float(single) == pytest.approx(balanced_single.get(metric, 0.0))
        assert single.dtype == torch.float32

    @given(st.lists(st.integers(0, 10**9), min_size=2, max_size=9).filter(any))
    @settings(max_examples=60, deadline=None)
    def test_against_numpy(self, load):
        load_E, n = torch.tensor(load), np.array(load, dtype=np.float64)
        share = n / n.sum()
        entropy = -sum(s * math.log(s) for s in share if s > 0)
        for got, expected in (
            (load_share(load_E), share),
            (max_violation(load_E), n.max() / n.mean() - 1),
            (load_cv(load_E), n.std() / n.mean()),
            (usage_entropy(load_E), entropy / math.log(len(load))),
            (expert_usage(load_E), math.exp(entropy)),
            (dead_experts(load_E), (n == 0).sum()),
        ):
            torch.testing.assert_close(
                got, torch.as_tensor(expected, dtype=torch.float32), rtol=1e-5, atol=1e-5
            )

    @pytest.mark.parametrize("metric", LOAD_METRICS)
    def test_does_not_depend_on_the_order_of_experts_or_the_scale(self, metric):
        load_E = torch.tensor([3.0, 0, 9, 1, 4])
        expected = metric(load_E)
        torch.testing.assert_close(metric(load_E[torch.randperm(5)]), expected, **CLOSE)
        torch.testing.assert_close(metric(load_E * 7), expected, **CLOSE)

    def test_counts_beyond_float32_integers_still_count(self):
        load_E = torch.tensor([2**24 + 1, 2**24 - 1], dtype=torch.int64)
        assert float(max_violation(load_E)) == pytest.approx(2.0**-24, rel=1e-6)

    def test_worked_example(self):
        # k equally loaded experts out of many are k effective experts.
        assert float(expert_usage(torch.tensor([4.0, 4, 4, 0, 0, 0]))) == pytest.approx(3.0)

    def test_dropped(self):
        routing = routing_of([{0, 1}, {1}, set(), {0, 2}], 3)
        assert float(dropped_assignments(routing, 2)) == pytest.approx(3 / 8)
        assert float(dropped_tokens(chosen_experts(routing))) == pytest.approx(1 / 4)
        assert dropped_tokens(chosen_experts(routing)) == routing.stats["dropped_fraction"]
        nothing = routing_of([], 3)
        assert float(dropped_assignments(nothing, 2)) == 0.0
        assert float(dropped_tokens(chosen_experts(nothing))) == 0.0


class TestConfidence:
    def test_margin(self):
        p_TE = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
        assert float(router_margin(p_TE.log())) == pytest.approx((0.2 + 0.7) / 2)
        assert float(router_margin(torch.zeros(5, 4))) == 0.0
        assert float(router_margin(torch.tensor([[200.0, 0.0, 0.0]]))) == 1.0
        assert float(router_margin(torch.randn(5, 1))) == 1.0
        assert float(router_margin(torch.randn(0, 4))) == 0.0
        assert router_margin(torch.randn(3, 4).bfloat16()).dtype == torch.float32


class TestAgreement:
    @given(st.data())
    @settings(max_examples=80, deadline=None)
    def test_against_sets(self, data):
        sets_a, num_experts = data.draw(choices())
        one = st.sets(st.integers(0, num_experts - 1))
        sets_b = data.draw(st.lists(one, min_size=len(sets_a), max_size=len(sets_a)))
        pairs = list(zip(sets_a, sets_b, strict=True))
        shares = [len(a & b) / max(len(a), len(b)) for a, b in pairs if a or b]
        a_TK, b_TK = table(sets_a), table(sets_b)
        assert float(expert_saturation(a_TK, b_TK)) == pytest.approx(
            sum(shares) / max(len(shares), 1)
        )
        assert float(disagreement(a_TK, b_TK)) == pytest.approx(
            sum(a != b for a, b in pairs) / max(len(pairs), 1)
        )
        assert expert_saturation(a_TK, b_TK) == expert_saturation(b_TK, a_TK)

    def test_worked_example_of_router_saturation(self):
        now = torch.tensor([[0, 3], [1, 2], [5, 4]])
        final = torch.tensor([[3, 0], [2, 6], [0, 1]])
        assert float(expert_saturation(now, final)) == pytest.approx((1 + 1 / 2 + 0) / 3)
        assert float(disagreement(now, final)) == pytest.approx(2 / 3)

    def test_tables_must_be_of_the_same_tokens(self):
        for metric in (expert_saturation, disagreement):
            with pytest.raises(ValueError, match="same tokens"):
                metric(torch.zeros(3, 1, dtype=torch.int64), torch.zeros(4, 1, dtype=torch.int64))

    def test_kl_against_torch_distributions(self):
        torch.manual_seed(0)
        p_TE, q_TE = 3 * torch.randn(50, 7), 3 * torch.randn(50, 7)
        expected = torch.distributions.kl_divergence(
            torch.distributions.Categorical(logits=p_TE.double()),
            torch.distributions.Categorical(logits=q_TE.double()),
        ).mean()
        torch.testing.assert_close(routing_kl(p_TE, q_TE), expected.float(), **CLOSE)

    def test_kl_extremes(self):
        logits_TE = torch.randn(20, 5)
        assert float(routing_kl(logits_TE, logits_TE + 3.0)) == pytest.approx(0.0, abs=1e-6)
        assert float(routing_kl(logits_TE, logits_TE + 3.0)) >= 0.0
        certain = torch.tensor([[0.0, -torch.inf, -torch.inf, -torch.inf]])
        assert float(routing_kl(certain, torch.zeros(1, 4))) == pytest.approx(math.log(4))
        assert float(routing_kl(certain, certain)) == 0.0
        assert float(routing_kl(torch.zeros(1, 4), certain)) == math.inf
        assert float(routing_kl(torch.zeros(0, 4), torch.zeros(0, 4))) == 0.0
        assert float(routing_kl(torch.randn(3, 1), torch.randn(3, 1))) == 0.0
        with pytest.raises(ValueError, match="same tokens and experts"):
            routing_kl(torch.zeros(1, 4), torch.zeros(1, 5))


class TestSpecialisation:
    @given(choices())
    @settings(max_examples=60, deadline=None)
    def test_co_activation_against_sets(self, case):
        sets, num_experts = case
        expected_EE = torch.zeros(num_experts, num_experts)
        for i in range(num_experts):
            of_i = [experts for experts in sets if i in experts]
            for j in range(num_experts):
                together = sum(j in experts for experts in of_i)
                expected_EE[i, j] = together / max(len(of_i), 1)
        torch.testing.assert_close(co_activation(table(sets), num_experts), expected_EE, **CLOSE)

    def test_co_activation_of_independent_choices(self):
        torch.manual_seed(0)
        chosen_TK = torch.rand(20_000, 8).topk(3).indices
        got_EE = co_activation(chosen_TK, 8)
        expected_EE = torch.where(torch.eye(8, dtype=torch.bool), 1.0, 2 / 7)
        torch.testing.assert_close(got_EE, expected_EE, rtol=0, atol=0.03)

    @given(st.data())
    @settings(max_examples=60, deadline=None)
    def test_domain_and_vocabulary_specialisation_against_counters(self, data):
        sets, num_experts = data.draw(choices())
        groups = data.draw(st.lists(st.integers(-1, 3), min_size=len(sets), max_size=len(sets)))
        minimum = data.draw(st.integers(0, 3))
        chosen_TK, group_T = table(sets), torch.tensor(groups, dtype=torch.int64)
        tokens = Counter(groups)
        pairs = Counter((g, e) for g, s in zip(groups, sets, strict=True) for e in s)
        count = [[pairs[g, e] for e in range(num_experts)] for g in range(4)]
        share = [[n / max(tokens[g], 1) for n in row] for g, row in enumerate(count)]

        sizes = {"num_experts": num_experts, "num_groups": 4}
        assert expert_counts(chosen_TK, group_T, **sizes).tolist() == count
        sizes = {"num_experts": num_experts, "num_domains": 4}
        torch.testing.assert_close(
            domain_specialisation(chosen_TK, group_T, **sizes), torch.tensor(share), **CLOSE
        )
        sizes = {"num_experts": num_experts, "vocab_size": 4}
        best = [max(row) for row in share]
        torch.testing.assert_close(
            vocabulary_specialisation(chosen_TK, group_T, **sizes), torch.tensor(best), **CLOSE
        )
        own = [[] for _ in range(num_experts)]
        for g in range(4):
            if tokens[g] >= minimum and best[g] > 0:
                own[share[g].index(best[g])].append(best[g])
        expected_E = torch.tensor([sum(v) / max(len(v), 1) for v in own], dtype=torch.float32)
        got_E = expert_vocabulary_specialisation(
            chosen_TK, group_T, min_occurrences=minimum, **sizes
        )
        torch.testing.assert_close(got_E, expected_E, **CLOSE)

    def test_domain_rows_sum_to_the_experts_per_token(self):
        chosen_TK = torch.rand(60, 5).topk(2).indices
        share_DE = domain_specialisation(
            chosen_TK, torch.arange(60) % 3, num_experts=5, num_domains=4
        )
        torch.testing.assert_close(share_DE.sum(dim=1), torch.tensor([2.0, 2, 2, 0]), **CLOSE)

    def test_mutual_information_extremes(self):
        def measure(counts):
            return float(normalised_mutual_information(torch.tensor(counts)))

        assert measure([[10, 0], [0, 30]]) == pytest.approx(1.0)  # each determines the other
        assert measure([[10, 5, 0], [0, 0, 30]]) == pytest.approx(1.0)  # expert -> group
        assert measure([[2, 4], [10, 20]]) == pytest.approx(0.0, abs=1e-6)  # the same proportions
        assert measure([[0, 7], [0, 9]]) == 0.0  # one expert in use
        assert measure([[3, 7]]) == 0.0  # one group
        assert measure([[0, 0], [0, 0]]) == 0.0

    @given(st.lists(st.lists(st.integers(0, 50), min_size=4, max_size=4), min_size=2, max_size=5))
    @settings(max_examples=60, deadline=None)
    def test_mutual_information_against_its_sum(self, counts):
        n = np.array(counts, dtype=np.float64)
        rows, columns, total = n.sum(axis=1), n.sum(axis=0), n.sum()

        def entropy(values):
            return -sum(v / total * math.log(v / total) for v in values if v)

        information = sum(
            n[g, e] / total * math.log(n[g, e] * total / (rows[g] * columns[e]))
            for g in range(len(rows))
            for e in range(4)
            if n[g, e]
        )
        smaller = min(entropy(rows), entropy(columns)) if total else 0.0
        expected = information / smaller if smaller > 1e-9 else 0.0
        got = normalised_mutual_information(torch.tensor(counts))
        assert float(got) == pytest.approx(expected, abs=1e-5)

    def test_groups_must_fit_the_tokens(self):
        with pytest.raises(ValueError, match=r"expected \(T, K\) and \(T,\)"):
            expert_counts(
                torch.zeros(3, 1, dtype=torch.int64),
                torch.zeros(4, dtype=torch.int64),
                num_experts=1,
                num_groups=1,
            )


def every_metric(chosen_TK, other_TK, group_T, logits_TE, other_TE):
    """All metrics of tokens, as (value, axes of the value that are experts)."""
    num_experts = logits_TE.shape[1]
    sizes = {"num_experts": num_experts, "num_domains": 3}
    words = {"num_experts": num_experts, "vocab_size": 3}
    counts_GE = expert_counts(chosen_TK, group_T, num_experts=num_experts, num_groups=3)
    return {
        "margin": (router_margin(logits_TE), ()),
        "kl": (routing_kl(logits_TE, other_TE), ()),
        "saturation": (expert_saturation(chosen_TK, other_TK), ()),
        "disagreement": (disagreement(chosen_TK, other_TK), ()),
        "dropped": (dropped_tokens(chosen_TK), ()),
        "co_activation": (co_activation(chosen_TK, num_experts), (0, 1)),
        "domain": (domain_specialisation(chosen_TK, group_T, **sizes), (1,)),
        "vocabulary": (vocabulary_specialisation(chosen_TK, group_T, **words), ()),
        "information": (normalised_mutual_information(counts_GE), ()),
    }


def tokens(num_tokens=40, num_experts=6):
    torch.manual_seed(0)
    logits_TE, other_TE = torch.randn(2, num_tokens, num_experts)
    chosen_TK = logits_TE.topk(min(2, num_experts)).indices
    chosen_TK = chosen_TK.masked_fill(torch.rand(chosen_TK.shape) < 0.2, -1)
    other_TK = other_TE.topk(min(3, num_experts)).indices
    return chosen_TK, other_TK, torch.arange(num_tokens) % 3, logits_TE, other_TE


def test_the_order_of_tokens_changes_nothing():
    case = tokens()
    order = torch.randperm(40)
    before, after = every_metric(*case), every_metric(*(tensor[order] for tensor in case))
    for name, (value, _) in before.items():
        torch.testing.assert_close(after[name][0], value, **CLOSE, msg=name)


def test_renaming_experts_renames_the_result():
    chosen_TK, other_TK, group_T, logits_TE, other_TE = tokens()
    new_name_E = torch.randperm(6)
    old_name_E = new_name_E.argsort()

    def renamed(table_TK):
        return torch.where(table_TK < 0, -1, new_name_E[table_TK.clamp(min=0)])

    before = every_metric(chosen_TK, other_TK, group_T, logits_TE, other_TE)
    after = every_metric(
        renamed(chosen_TK),
        renamed(other_TK),
        group_T,
        logits_TE[:, old_name_E],
        other_TE[:, old_name_E],
    )
    for name, (value, expert_axes) in before.items():
        for axis in expert_axes:
            value = value.index_select(axis, old_name_E)
        torch.testing.assert_close(after[name][0], value, **CLOSE, msg=name)


@pytest.mark.parametrize(("num_tokens", "num_experts"), [(0, 4), (1, 4), (0, 1), (1, 1), (5, 1)])
def test_few_tokens_and_few_experts_give_finite_float32(num_tokens, num_experts):
    for name, (value, _) in every_metric(*tokens(num_tokens, num_experts)).items():
        assert value.dtype == torch.float32, name
        assert value.isfinite().all(), name
        assert num_tokens or not value.any(), name


def test_an_expert_that_does_not_exist_is_not_counted_as_one_of_the_next_group():
    chosen_TK = torch.tensor([[0, 5], [1, -1]])
    with pytest.raises(RuntimeError, match="out of bounds"):
        expert_counts(chosen_TK, torch.tensor([0, 1]), num_experts=4, num_groups=2)
    with pytest.raises(RuntimeError, match="out of bounds"):
        co_activation(torch.tensor([[0, 3]]), 3)  # (0, 3) is not (1, 0)


def test_tables_and_logits_of_another_shape_are_refused():
    table_TK, list_T = torch.tensor([[1], [2]]), torch.tensor([1, 2])
    for metric in (expert_saturation, disagreement):
        for pair in ((table_TK, list_T), (list_T, table_TK)):
            with pytest.raises(ValueError, match=r"shapes .*\(2,\).*; expected \(T, K\) tables"):
                metric(*pair)
    with pytest.raises(ValueError, match=r"logits of shapes \(3,\) and \(3,\)"):
        routing_kl(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match=r"logits_TE has shape \(3,\); expected"):
        router_margin(torch.zeros(3))


def test_nothing_waits_for_the_device():
    case = tokens()
    routing = routing_of([{0, 1}, {2}, set()], 3)
    load_E = routing.stats["expert_load_E"]
    with HostReads() as reads:
        every_metric(*case)
        chosen_experts(routing, 2)
        chosen_experts(routing, 2, best_first=True)
        dropped_assignments(routing, 2)
        expert_vocabulary_specialisation(*case[:1], case[2], num_experts=6, vocab_size=3)
        for metric in (load_share, *LOAD_METRICS):
            metric(load_E)
    assert reads.names == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu_without_waiting_for_the_device():
    case = tokens()
    on_cpu = every_metric(*case)
    on_device = [tensor.cuda() for tensor in case]
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_cuda = every_metric(*on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name, (value, _) in on_cpu.items():
        torch.testing.assert_close(on_cuda[name][0].cpu(), value, **CLOSE, msg=name)
