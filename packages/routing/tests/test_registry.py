"""Routers from outside: registered in the process, or installed with an entry point."""

import sys

import pytest
import torch

from flan_moe.routing import (
    PRESETS,
    Router,
    RouterConfig,
    RouterPreset,
    build_router,
    register_router,
    router_names,
)
from flan_moe.routing import registry as registry_module


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(registry_module, "_registered", {})


class Farthest(Router):
    """Tokens choose the experts that they like least."""

    def select_experts(self, scores_TE, logits_TE, token_id_T):
        return super().select_experts(-scores_TE, -logits_TE, token_id_T)


def test_a_preset_of_options():
    register_router("mine", RouterPreset(options={"top_k": 3, "score": "sigmoid"}))
    config = RouterConfig(name="mine", num_experts=6)
    assert (config.top_k, config.score) == (3, "sigmoid")
    assert type(build_router(config, 4)) is Router
    assert "mine" in router_names()


def test_a_router_of_its_own_with_its_own_options():
    register_router("farthest", RouterPreset(router=Farthest))
    config = RouterConfig(name="farthest", num_experts=3, extra={"depth": 2})
    assert RouterConfig.from_dict(config.to_dict()) == config
    router = build_router(config, 3)
    assert isinstance(router, Farthest)
    with torch.no_grad():
        router.weight.copy_(torch.eye(3))
    routing = router(torch.tensor([[3.0, 1.0, 2.0]]))
    routing.validate()
    assert routing.expert_offsets.tolist() == [0, 0, 1, 1]


def test_names_are_not_taken_away():
    with pytest.raises(ValueError, match=r"'switch'\): the name is taken"):
        register_router("switch", RouterPreset())
    preset = RouterPreset()
    register_router("mine", preset)
    register_router("mine", preset)  # the same again, as when a module is imported twice
    with pytest.raises(ValueError, match="the name is taken"):
        register_router("mine", RouterPreset(options={"top_k": 2}))
    with pytest.raises(TypeError, match="expected a RouterPreset, got 3"):
        register_router("mine", 3)
    with pytest.raises(TypeError, match=r"3\): expected a name"):
        register_router(3, preset)
    register_router("switch", PRESETS["switch"])


def test_a_preset_of_options_that_do_not_exist_is_refused():
    with pytest.raises(ValueError, match="options 'topk': expected some of num_experts, top_k,"):
        RouterPreset(options={"topk": 3})


def install(tmp_path, monkeypatch, body):
    """A distribution on the path with one entry point, as pip would leave it."""
    (tmp_path / "their_routers.py").write_text(body)
    info = tmp_path / "their_routers-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-routers\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[flan_moe.routers]\ntheirs = their_routers:theirs\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "their_routers", raising=False)


def test_an_installed_package_adds_a_router(tmp_path, monkeypatch):
    install(
        tmp_path,
        monkeypatch,
        "from flan_moe.routing import RouterPreset\ntheirs = RouterPreset(options={'top_k': 4})\n",
    )
    assert RouterConfig(name="theirs").top_k == 4
    assert "theirs" in router_names()


def test_an_entry_point_that_is_no_router_is_refused(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "theirs = 3\n")
    with pytest.raises(ValueError, match="'their_routers:theirs' is not a RouterPreset but 3"):
        RouterConfig(name="theirs")
