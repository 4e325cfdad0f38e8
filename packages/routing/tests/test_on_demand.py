"""Losses and statistics that wait for a reader are those that do not wait."""

import copy
import pickle

import pytest
import torch
from small_routers import D_MODEL, make_router, route

from flan_moe.routing import ROUTER_NAMES
from flan_moe.routing import router as router_module
from flan_moe.routing.on_demand import OnDemand


@pytest.mark.parametrize("name", ROUTER_NAMES)
def test_what_is_read_late_equals_what_is_made_at_once(name):
    router = make_router(name).eval()
    x_TD = torch.randn(40, D_MODEL)
    at_once = route(router, x_TD)
    with torch.inference_mode():
        late = route(router, x_TD)
    assert isinstance(late.losses, OnDemand)
    assert isinstance(late.stats, OnDemand)
    assert torch.equal(late.row_weight_R, at_once.row_weight_R.detach())
    for kind in ("losses", "stats"):
        expected, read = getattr(at_once, kind), getattr(late, kind)
        assert list(read) == list(expected)
        for key, value in expected.items():
            assert torch.equal(read[key], value.detach()), (kind, key)


def test_nothing_is_measured_until_somebody_reads(monkeypatch):
    calls = []
    measure = router_module.measurements
    monkeypatch.setattr(
        router_module, "measurements", lambda *a, **k: calls.append(1) or measure(*a, **k)
    )
    router = make_router("top_k").eval()
    with torch.no_grad():
        routing = route(router, torch.randn(3, D_MODEL))
    assert calls == []
    assert float(routing.stats["expert_load_E"].sum()) == routing.num_rows
    assert routing.stats["router_entropy"] is routing.stats["router_entropy"]
    assert calls == [1]
    route(router.train(), torch.randn(3, D_MODEL))
    assert calls == [1, 1]


def test_unread_measurements_can_be_copied_and_pickled():
    router = make_router("switch").eval()
    with torch.no_grad():
        routing = route(router, torch.randn(5, D_MODEL))
    expected = copy.deepcopy(routing).stats["router_entropy"]
    assert torch.equal(pickle.loads(pickle.dumps(routing)).stats["router_entropy"], expected)
    with pytest.raises(KeyError, match="nothing"):
        routing.losses["nothing"]
