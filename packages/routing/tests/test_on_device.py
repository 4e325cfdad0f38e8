"""Nothing waits for a device, and everything compiles into one graph."""

import pytest
import torch
from host_reads import HostReads
from small_routers import D_MODEL, dense_weights, make_router, route

import flan_moe.routing.router as router_module
from flan_moe.routing import ROUTER_NAMES, build_routing


@pytest.mark.parametrize("name", ROUTER_NAMES)
def test_the_host_reads_one_number_which_is_the_trimming_on_cpu(name, monkeypatch):
    router = make_router(name)
    x_TD = torch.randn(48, D_MODEL)  # fewer would be listed in Python, on the CPU only
    ids_T = torch.zeros(48, dtype=torch.long)
    monkeypatch.setattr(router_module, "check_inputs", lambda *arguments: None)  # reads on CPU only
    with HostReads() as reads:
        router(x_TD, token_id_T=ids_T, sequence_T=ids_T)
    assert reads.names == ["aten._local_scalar_dense.default"]


def test_untrimmed_building_reads_nothing():
    with HostReads() as reads:
        build_routing(
            token_N=torch.tensor([0, 1, 1]),
            expert_N=torch.tensor([1, 0, 1]),
            weight_N=torch.ones(3),
            keep_N=torch.tensor([True, True, False]),
            num_tokens=2,
            num_experts=2,
            losses={},
            stats={},
            trim=False,
        )
    assert reads.names == []


@pytest.mark.parametrize("name", ROUTER_NAMES)
def test_on_the_meta_device_a_routing_has_shapes_without_numbers(name):
    """It has no autocast that could be suspended, and nothing there can be read."""
    router = make_router(name).to("meta")
    routing = route(router, torch.randn(32, D_MODEL, device="meta"))
    assert routing.row_token_R.is_meta
    assert routing.token_offsets.shape == (33,)
    assert routing.losses["balance"].shape == routing.losses["z"].shape == ()


@pytest.mark.parametrize("name", ROUTER_NAMES)
@pytest.mark.parametrize("training", [True, False])
def test_compiles_into_one_graph_that_computes_the_same(name, training):
    router = make_router(name, capacity_factor=0.75, min_capacity=1).train(training)
    x_TD = torch.randn(16, D_MODEL)
    eager = route(router, x_TD)
    torch.compiler.reset()
    compiled = torch.compile(router, fullgraph=True, backend="aot_eager")
    captured = route(compiled, x_TD)
    torch.testing.assert_close(dense_weights(captured), dense_weights(eager))
    for key, loss in eager.losses.items():
        torch.testing.assert_close(captured.losses[key], loss)
    if router.weight is not None:
        eager.row_weight_R.square().sum().backward()
        expected = router.weight.grad.clone()
        router.zero_grad()
        captured.row_weight_R.square().sum().backward()
        torch.testing.assert_close(router.weight.grad, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ROUTER_NAMES)
def test_cuda_equals_cpu_without_waiting_for_the_device(name):
    router = make_router(name, capacity_factor=0.5, second_expert="all")
    x_TD = torch.randn(64, D_MODEL)
    ids_T = torch.arange(64) % 11
    on_cpu = router(x_TD, token_id_T=ids_T, sequence_T=ids_T)
    router, x_TD, ids_T = router.cuda(), x_TD.cuda(), ids_T.cuda()
    forced_TK = torch.zeros(64, 1, dtype=torch.int64, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_cuda = router(x_TD, token_id_T=ids_T, sequence_T=ids_T)
        router(x_TD, forced_experts=forced_TK)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    on_cuda.validate()
    rows = on_cpu.num_rows
    assert torch.equal(on_cuda.expert_offsets.cpu(), on_cpu.expert_offsets)
    assert torch.equal(on_cuda.row_token_R[:rows].cpu(), on_cpu.row_token_R)
    assert torch.equal(on_cuda.token_row_R[:rows].cpu(), on_cpu.token_row_R)
    torch.testing.assert_close(on_cuda.row_weight_R[:rows].cpu(), on_cpu.row_weight_R)
