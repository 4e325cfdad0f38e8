"""Updates between optimizer steps: exact rules, and what must not disturb them."""

import copy
import pickle
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
import torch
from small_routers import D_MODEL, make_router, route
from torch import nn
from torch.utils.checkpoint import checkpoint

from flan_moe.routing import RouterBalancer
from flan_moe.routing.balancing import sign_update
from flan_moe.routing.quantile import bias_histogram, quantile_bias


class Layer(nn.Module):
    """A router and something to train it by."""

    def __init__(self, name="deepseek_v4", **options):
        super().__init__()
        self.router = make_router(name, **options)
        self.recompute = False

    def forward(self, x_TD):
        if self.recompute:
            return checkpoint(self.body, x_TD, use_reentrant=False)
        return self.body(x_TD)

    def body(self, x_TD):
        routing = route(self.router, x_TD)
        return routing.row_weight_R.square().sum() + routing.losses["balance"], routing


def step(layer, balancer, microbatches):
    for x_TD in microbatches:
        loss, routing = layer(x_TD)
        loss.backward()
        balancer.observe({"router": routing})
    balancer.step()


def test_the_sign_rule_lifts_experts_below_the_mean_by_the_rate_and_sums_to_zero():
    change_E = sign_update(torch.tensor([10.0, 2.0, 6.0, 6.0, 1.0]), rate=0.01)
    raw = np.array([-1, 1, -1, -1, 1]) * 0.01
    np.testing.assert_allclose(change_E.numpy(), raw - raw.mean(), rtol=1e-6)
    assert sign_update(torch.full((4,), 5.0), rate=0.01).tolist() == [0] * 4


@pytest.mark.parametrize("update", ["sign", "quantile"])
def test_biases_even_out_the_load(update):
    router = make_router("olmoe", bias_update=update, bias_rate=0.002)
    balancer = RouterBalancer(router)
    x_TD = torch.randn(256, D_MODEL) + 1.0  # a shared direction favours some experts
    before = route(router, x_TD).stats["expert_load_E"]
    for _ in range(600):
        balancer.observe({"": route(router, x_TD)})
        balancer.step()
    after = route(router, x_TD).stats["expert_load_E"]
    assert before.max() / before.mean() > 1.8
    assert after.max() / after.mean() < 1.3, "the sign rule ends in a cycle around balance"


def test_quantile_balancing_needs_one_step_where_the_choice_of_one_expert_leaves_the_others():
    """With k / E of the required biases below it, an expert is chosen by k / E of the tokens."""
    scores_TE = torch.rand(4000, 8, generator=torch.Generator().manual_seed(0)).square()
    bias_E = torch.linspace(-0.2, 0.2, 8)
    histogram_EB = bias_histogram(scores_TE, bias_E, k=2)
    assert torch.equal(histogram_EB.sum(dim=-1), torch.full((8,), 4000.0))
    solved_E = quantile_bias(histogram_EB, bias_E, share=2 / 8)
    cutoff_T = np.sort((scores_TE + bias_E).numpy(), axis=-1)[:, -3]
    exact = np.quantile(cutoff_T[:, None] - scores_TE.numpy(), 2 / 8, axis=0)
    np.testing.assert_allclose(solved_E.numpy(), exact - exact.mean(), atol=2.4 / 1000)


def test_an_expert_that_saw_no_token_keeps_its_bias():
    bias_E = torch.tensor([0.1, -0.1])
    assert torch.equal(quantile_bias(torch.zeros(2, 1000), bias_E, share=0.5), bias_E)


@pytest.mark.parametrize("update", ["sign", "quantile"])
def test_accumulation_evaluation_and_recomputation_do_not_change_the_update(update):
    x_TD = torch.randn(40, D_MODEL)

    def biases(*, pieces, recompute=False, evaluate=False):
        layer = Layer("olmoe", bias_update=update, bias_rate=0.01)
        layer.recompute = recompute
        balancer = RouterBalancer(layer)
        for _ in range(3):
            step(layer, balancer, x_TD.chunk(pieces))
            if evaluate:
                layer.eval()(torch.randn(400, D_MODEL))
                layer.train()
        return layer.router.selection_bias_E

    expected = biases(pieces=1)
    assert expected.abs().sum() > 0
    assert torch.equal(biases(pieces=4), expected)
    assert torch.equal(biases(pieces=2, recompute=True), expected)
    assert torch.equal(biases(pieces=2, evaluate=True), expected)


def test_the_bias_decides_selection_and_nothing_else():
    router = make_router("deepseek_v3", renormalise="never", weight_scale=1.0)
    x_TD = torch.randn(30, D_MODEL)
    router.selection_bias_E[5] = 10.0
    routing = route(router, x_TD)
    assert int(routing.stats["expert_load_E"][5]) == 30, "its group always wins, and it wins there"
    start, end = routing.expert_offsets[5:7].tolist()
    gates_T = (x_TD @ router.weight[5]).sigmoid()
    torch.testing.assert_close(routing.row_weight_R[start:end], gates_T)
    routing.row_weight_R.sum().backward()
    assert router.selection_bias_E.grad is None
    assert "selection_bias_E" not in dict(router.named_parameters())


def test_the_bias_is_in_the_state_dict_and_stays_in_float32():
    layer = Layer()
    step(layer, RouterBalancer(layer), [torch.randn(40, D_MODEL)])
    other = Layer()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.router.selection_bias_E, layer.router.selection_bias_E)
    bias_E = layer.router.selection_bias_E.clone()
    layer.bfloat16()
    assert layer.router.weight.dtype == torch.bfloat16
    assert layer.router.selection_bias_E.dtype == torch.float32
    assert torch.equal(layer.router.selection_bias_E, bias_E)


def test_global_scope_balances_over_the_microbatches_of_a_step():
    """Expert loads that even out over two microbatches are even, whatever each one does."""
    layer = Layer("top_k", top_k=1, balance_scope="global", capacity_factor=None)
    balancer = RouterBalancer(layer)
    alone = Layer("top_k", top_k=1, capacity_factor=None)
    x_TD = torch.randn(40, D_MODEL)
    first, second = x_TD[:30], x_TD[30:]
    _, routing = layer(first)
    torch.testing.assert_close(routing.losses["balance"], alone(first)[1].losses["balance"])
    balancer.observe({"router": routing})
    probs_TE = (second @ layer.router.weight.T).softmax(dim=-1)
    whole_E = alone(x_TD)[1].stats["choice_count_E"]
    expected = 4 * (whole_E / 40 * probs_TE.mean(dim=0)).sum()
    for _ in range(2):  # asking twice, as recomputation does, changes nothing
        torch.testing.assert_close(layer(second)[1].losses["balance"], expected)
    balancer.observe({"router": layer(second)[1]})
    balancer.step()
    torch.testing.assert_close(
        layer(second)[1].losses["balance"], alone(second)[1].losses["balance"]
    )


def test_routers_that_need_nothing_are_left_alone():
    layer = Layer("switch")
    assert len(RouterBalancer(layer)) == 0
    assert len(RouterBalancer(Layer())) == 1


@pytest.mark.parametrize("update", ["sign", "quantile"])
def test_a_routing_that_is_missing_or_of_evaluation_is_refused(update):
    layer = Layer("olmoe", bias_update=update)
    balancer = RouterBalancer(layer)
    routing = layer.eval()(torch.randn(5, D_MODEL))[1]
    with pytest.raises(ValueError, match="router 'router' was not made in training"):
        balancer.observe({"router": routing})
    with pytest.raises(TypeError, match="observe: expected routings by name"):
        balancer.observe(routing)
    with pytest.raises(ValueError, match="no routing of router 'router'; there are 'decoder'"):
        balancer.observe({"decoder": routing})


def test_a_model_is_copied_without_the_process_group_of_its_balancer():
    """As an average of its weights is; a process group can be neither copied nor pickled."""
    layer = Layer("top_k", balance_scope="global")
    RouterBalancer(layer, process_group=threading.Lock())  # can be neither, likewise
    assert layer.router.reduce_load is not None
    x_TD = torch.randn(5, D_MODEL)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.router.reduce_load is None
        torch.testing.assert_close(other(x_TD)[0], layer(x_TD)[0])
        assert len(RouterBalancer(other)) == 1


def test_a_balancer_may_be_made_before_the_process_group(monkeypatch):
    layer = Layer("top_k", bias_update="sign", bias_rate=0.1)
    balancer = RouterBalancer(layer)
    _, routing = layer(torch.randn(40, D_MODEL))
    balancer.observe({"router": routing})
    others_E = torch.tensor([1000.0, 0.0, 0.0, 0.0])  # of the ranks that this one does not see
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda load, group: load.add_(others_E))
    balancer.step()
    torch.testing.assert_close(
        layer.router.selection_bias_E, torch.tensor([-0.15, 0.05, 0.05, 0.05])
    )


RANKS = """
    import sys
    import torch
    from torch import distributed
    from flan_moe.routing import RouterBalancer, RouterConfig, build_router

    rank, ranks, update, rendezvous = (*map(int, sys.argv[1:3]), *sys.argv[3:])
    distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks
    )
    torch.manual_seed(0)
    config = RouterConfig(
        name="olmoe", num_experts=4, top_k=2, bias_update=update, bias_rate=0.01,
        balance_scope="global",
    )
    router = build_router(config, 6)
    torch.nn.init.normal_(router.weight)
    balancer = RouterBalancer(router)
    x_TD = torch.randn(48, 6)
    loads = []
    for _ in range(3):
        routing = router(x_TD.chunk(ranks)[rank])
        loads.append(routing.losses["balance"].detach())
        balancer.observe({"": routing})
        balancer.step()
    mean = torch.stack(loads)
    distributed.all_reduce(mean)
    print(router.selection_bias_E.tolist(), [round(x, 5) for x in (mean / ranks).tolist()])
    distributed.barrier()
    distributed.destroy_process_group()  # its threads must not outlive the interpreter
"""


@pytest.mark.parametrize("update", ["sign", "quantile"])
def test_ranks_share_counts_so_that_their_number_does_not_matter(update, tmp_path):
    """Bias updates, and the global-batch loss averaged over ranks, are those of one process."""

    script = textwrap.dedent(RANKS)

    def run(ranks):
        rendezvous = tmp_path / f"rendezvous{ranks}"
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", script, str(rank), str(ranks), update, str(rendezvous)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(ranks)
        ]
        printed = set()
        for process in processes:
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
            printed.add(out)
        assert len(printed) == 1, "all ranks hold the same biases"
        return printed.pop()

    assert run(2) == run(1)


@pytest.mark.parametrize("update", ["sign", "quantile"])
def test_a_rank_that_saw_nothing_takes_part_in_the_sum(update, monkeypatch):
    """Otherwise the other ranks would wait for it for ever."""
    router = make_router("olmoe", bias_update=update)
    balancer = RouterBalancer(router)
    summed = []
    monkeypatch.setattr(balancer, "_reduce", lambda amount: summed.append(amount) or amount)
    balancer.step()
    assert [amount.abs().sum() for amount in summed] == [0]
    assert router.selection_bias_E.tolist() == [0, 0, 0, 0]
