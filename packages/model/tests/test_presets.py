"""Presets against the published sizes of their families."""

import pytest
from torch import device, nn

from flan_moe.model import (
    PRESETS,
    FlanMoEForConditionalGeneration,
    count_parameters,
    flan_moe_config,
    flops_per_token,
)

# Of the public T5X / flaxformer configurations, in billions, with the digits that are published or
# that follow from them: parameters, those of them that are active (without embedding and head), and
# forward FLOPs per token (mean of both stacks, without head and attention scores).
PUBLISHED = {
    "t5-v1.1-small": ("0.077", "0.044", "0.04"),
    "t5-v1.1-base": ("0.248", "0.198", "0.20"),
    "t5-v1.1-large": ("0.783", "0.717", "0.72"),
    "t5-v1.1-xl": ("2.85", "2.72", "2.7"),
    "t5-v1.1-xxl": ("11.1", "10.9", "10.9"),
    "flan-ec-small": ("0.467", "0.050", "0.05"),
    "flan-ec-base": ("3.82", "0.227", "0.23"),
    "flan-ec-large": ("13.9", "0.823", "0.82"),
    "flan-ec-xl": ("50.4", "3.10", "3.1"),
    "flan-ec-xxl": ("201", "12.4", "12.4"),
    "flan-gs-small": ("0.27", "0.050", "0.05"),
    "flan-gs-base": ("2.0", "0.227", "0.23"),
    "flan-gs-large": ("7.3", "0.82", "0.82"),
    "flan-gs-xl": ("26.6", "3.1", "3.1"),
    "flan-gs-xxl": ("106", "12.4", "12.4"),
    # active parameters: published for 128 experts; each expert adds 9,216 in the routers
    "flan-switch-base-8": ("0.62", "0.198", "0.20"),
    "flan-switch-base-16": ("1.07", "0.198", "0.20"),
    "flan-switch-base-32": ("1.98", "0.199", "0.20"),
    "flan-switch-base-64": ("3.79", "0.199", "0.20"),
    "flan-switch-base-128": ("7.4", "0.199", "0.20"),
    "flan-switch-base-256": ("14.7", "0.201", "0.20"),
    "flan-switch-base": ("7.4", "0.199", "0.20"),
    "flan-switch-large": ("26.3", "0.708", "0.71"),
    "flan-switch-xxl": ("395", "10.9", "10.9"),
    "flan-st-base": ("0.70", "0.255", "0.25"),
    "flan-st-xl": ("8.9", "3.47", "3.5"),
    "flan-st-32b": ("269.1", "34.7", "34.7"),
}
OUR_OWN = {"flan-moe-tiny", "flan-moe-mini"}


def as_printed(value, example):
    return f"{value / 1e9:.{len(example.partition('.')[2])}f}"


def cost(config):
    return flops_per_token(config, encoder_length=0, decoder_length=0, include_head=False)


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_have_the_published_sizes(preset):
    config = flan_moe_config(preset)
    total, active, gigaflops = PUBLISHED[preset]
    count = count_parameters(config)
    assert as_printed(count.total, total) == total
    assert as_printed(count.active, active) == active
    flops = cost(config)
    assert as_printed(flops.mean, gigaflops) == gigaflops
    # a token passes through one stack of two and costs two FLOPs per parameter
    assert flops.mean == pytest.approx(count.active, rel=2e-3)


def test_st_moe_32b_has_the_published_stacks_and_routers():
    config = flan_moe_config("flan-st-32b")
    flops = cost(config)
    assert as_printed(flops.encoder_stack, "30.7") == "30.7"
    assert as_printed(flops.decoder_stack, "38.8") == "38.8"
    # "less than 4 million parameters" in all routers
    assert count_parameters(config).router == 12 * 5120 * 64 == 3_932_160


def test_every_preset_is_checked_or_our_own():
    assert set(PRESETS) - set(PUBLISHED) == OUR_OWN


@pytest.mark.parametrize("preset", PRESETS)
def test_the_model_has_the_parameters_that_are_counted(preset, monkeypatch):
    monkeypatch.setattr(nn.init, "normal_", lambda tensor, **_: tensor)  # slow on meta
    config = flan_moe_config(preset)
    with device("meta"):
        model = FlanMoEForConditionalGeneration(config)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    count = count_parameters(config)
    assert count.total == sum(sizes.values())
    assert count.router == sum(size for name, size in sizes.items() if ".router." in name)


@pytest.mark.parametrize(
    ("family", "layers"),
    [
        ("flan-ec-small", [1, 3, 5, 7]),
        ("flan-ec-xl", list(range(1, 24, 2))),
        ("flan-gs-small", [3, 7]),
        ("flan-gs-base", [3, 7, 11]),
        ("flan-gs-xxl", [3, 7, 11, 15, 19, 23]),
        ("flan-switch-base", [1, 3, 5, 7, 9, 11]),
        ("flan-switch-xxl", list(range(1, 24, 2))),
        ("flan-st-base", [3, 7, 11]),
        ("flan-st-32b", [3, 7, 11, 15, 19, 23]),
        ("t5-v1.1-xxl", []),
    ],
)
def test_sparse_layers_are_where_flaxformer_puts_them(family, layers):
    config = flan_moe_config(family)
    for stack in ("encoder", "decoder"):
        found = [i for i in range(config.layer_count(stack)) if config.is_sparse(stack, i)]
        assert found == layers


@pytest.mark.parametrize(
    ("preset", "z_coef", "capacity_factor", "min_capacity"),
    [
        ("flan-switch-base", 0.0, 1.25, 4),
        ("flan-switch-large", 0.0, 1.25, 4),
        ("flan-switch-xxl", 0.0, 1.25, 2),
        ("flan-gs-xl", 0.0, 1.25, 4),
        ("flan-ec-xl", 0.0, 1.0, 4),
        ("flan-st-base", 1e-4, 1.25, 4),
        ("flan-st-xl", 1e-4, 2.0, 4),
        ("flan-st-32b", 1e-3, 1.25, 4),
    ],
)
def test_losses_and_capacity_are_the_references(preset, z_coef, capacity_factor, min_capacity):
    config = flan_moe_config(preset)
    assert (config.balance_coef, config.z_coef) == (0.01, z_coef)
    for stack in ("encoder", "decoder"):
        router = config.router_config(stack)
        assert router.capacity_factor == capacity_factor
        assert router.min_capacity == min_capacity
        assert router.eval_capacity_factor is None


def test_only_st_moe_has_extra_networks():
    extra = {name for name in PRESETS if flan_moe_config(name).extra_feed_forward}
    assert extra == {"flan-st-base", "flan-st-xl", "flan-st-32b"}


def test_only_switch_up_to_large_is_relu_and_tied():
    tied = {name for name in PRESETS if flan_moe_config(name).tie_word_embeddings}
    relu = {name for name in PRESETS if flan_moe_config(name).activation == "relu"}
    assert tied == relu == {n for n in PRESETS if "switch" in n} - {"flan-switch-xxl"}


def test_unknown_presets_and_overrides_are_refused():
    with pytest.raises(ValueError, match="preset 'flan-t6': expected one of 'flan-moe-tiny'"):
        flan_moe_config("flan-t6")
    with pytest.raises(ValueError, match="unknown key 'layers'"):
        flan_moe_config("flan-moe-tiny", layers=3)
    assert flan_moe_config("flan-moe-tiny", vocab_size=99).vocab_size == 99
