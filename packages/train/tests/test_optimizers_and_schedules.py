"""What the optimizer section and the schedule section of a recipe become."""

import math
from types import SimpleNamespace

import pytest
import torch
from composer.core import Time, Timestamp

from flan_moe.model import FlanMoEForConditionalGeneration, dense_twin, flan_moe_config
from flan_moe.train.adafactor import ExpertAdafactor
from flan_moe.train.optimizers import UNDECAYED, build_optimizer, parameter_groups
from flan_moe.train.recipe import load_recipe
from flan_moe.train.recipe_schema import (
    Adafactor,
    AdamW,
    Constant,
    Cosine,
    InverseSquareRoot,
    Linear,
)
from flan_moe.train.schedules import build_schedule


@pytest.fixture(scope="module")
def model():
    return FlanMoEForConditionalGeneration(flan_moe_config("flan-moe-tiny"))


@pytest.mark.parametrize("dense", [False, True])
def test_every_parameter_is_in_one_group_and_matrices_are_decayed(dense):
    config = flan_moe_config("flan-moe-tiny")
    model = FlanMoEForConditionalGeneration(dense_twin(config) if dense else config)
    names = {id(p): n for n, p in model.named_parameters()}
    decayed, undecayed = groups = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.1, 0.0)
    assert sorted(names[id(p)] for g in groups for p in g["params"]) == sorted(names.values())
    norms = {"self_attention_norm", "cross_attention_norm", "feed_forward_norm", "final_norm"}
    assert {kind(names[id(p)]) for p in undecayed["params"]} == norms | {"position_bias"}
    matrices = {f"{a}_attention.{m}" for a in ("self", "cross") for m in "qkvo"}
    matrices |= {"shared", "lm_head", "wi", "wo"}
    matrices |= set() if dense else {"router", "experts.wi", "experts.wo"}
    assert {kind(names[id(p)]) for p in decayed["params"]} == matrices


def kind(name):
    """``encoder.layers.1.self_attention.q.weight`` as ``self_attention.q``."""
    parts = name.removesuffix(".weight").split(".")
    skipped = ("encoder", "decoder", "layers", "feed_forward")
    return ".".join(p for p in parts if p not in skipped and not p.isdigit())


def test_every_exemption_from_decay_names_a_parameter(model):
    names = [n.split(".") for n, _ in model.named_parameters()]
    assert [word for word in UNDECAYED if not any(word in n for n in names)] == []


def test_frozen_parameters_are_left_out():
    model = FlanMoEForConditionalGeneration(flan_moe_config("flan-moe-tiny"))
    model.shared.weight.requires_grad_(False)
    parameters = [p for g in parameter_groups(model, 0.0) for p in g["params"]]
    assert all(p is not model.shared.weight for p in parameters)


def test_every_setting_reaches_the_optimizer(model):
    adamw = build_optimizer(AdamW(lr=0.5, betas=(0.8, 0.9), eps=1e-5, weight_decay=0.1), model)
    assert isinstance(adamw, torch.optim.AdamW)
    group = adamw.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"]) == (0.5, (0.8, 0.9), 1e-5)
    section = Adafactor(
        lr=0.5, decay=0.7, clip_threshold=2.0, scale_parameter=False, min_dim_size_to_factor=5
    )
    adafactor = build_optimizer(section, model)
    assert isinstance(adafactor, ExpertAdafactor)
    group = adafactor.param_groups[0]
    assert (group["lr"], group["decay"], group["clip_threshold"]) == (0.5, 0.7, 2.0)
    assert group["scale_parameter"] is False
    assert group["min_dim_size_to_factor"] == 5


def test_the_mini_recipes_train_sparse_model_and_twin_with_one_optimizer():
    """In both, every matrix is factored except routers and position biases, as in T5X at size."""
    sections = {name: load_recipe(name).recipe.optimizer for name in ("mini_sparse", "mini_dense")}
    assert sections["mini_sparse"] == sections["mini_dense"]
    sparse = flan_moe_config("flan-moe-mini", vocab_size=256)
    for name, config in (("mini_sparse", sparse), ("mini_dense", dense_twin(sparse))):
        model = FlanMoEForConditionalGeneration(config)
        optimizer = build_optimizer(sections[name], model)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        whole = {n for n, p in model.named_parameters() if "square" in optimizer.state[p]}
        expected = ("norm", "router", "position_bias")
        assert whole == {n for n, _ in model.named_parameters() if any(e in n for e in expected)}


def multiple(section, batch):
    maximum = Time.from_timestring("100ba")
    state = SimpleNamespace(
        timestamp=Timestamp(batch=batch), max_duration=maximum, dataloader_len=None
    )
    return build_schedule(section)(state)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (Constant(), {0: 1.0, 50: 1.0, 99: 1.0}),
        (Constant(warmup="10ba"), {0: 0.0, 5: 0.5, 10: 1.0, 99: 1.0}),
        (Linear(warmup="10ba", final=0.1), {5: 0.5, 10: 1.0, 55: 0.55, 100: 0.1}),
        (Linear(), {0: 1.0, 50: 0.5}),
        (Cosine(warmup="20ba"), {10: 0.5, 20: 1.0, 60: 0.5, 100: 0.0}),
        (Cosine(), {25: (1 + math.cos(math.pi / 4)) / 2}),
        (InverseSquareRoot(warmup="16ba"), {0: 0.0, 4: 0.25, 16: 1.0, 64: 0.5}),
    ],
)
def test_schedules_have_their_closed_form(section, values):
    assert {b: multiple(section, b) for b in values} == pytest.approx(values)
