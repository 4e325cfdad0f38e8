"""The choice of tile sizes: which entry applies, and what a table may hold."""

import json
from dataclasses import replace

import pytest
import torch

from flan_moe.experts.kernels.config import KERNELS, TileConfig
from flan_moe.experts.kernels.table import (
    BUCKETS,
    Default,
    Shape,
    Table,
    bucket,
    choose_configs,
    parse_table,
    shipped_table,
)

SHAPE = Shape(
    kernel="up",
    dtype="bfloat16",
    weight_bits=16,
    capability=90,
    width=768,
    hidden=3072,
    experts=128,
    rows_per_expert=256,
)


def config(block_m):
    return TileConfig(block_m=block_m, block_n=64, block_k=32)


def default(block_m, *, capability=0, rows_per_expert=1, kernel="up", bits=16, weight_bits=16):
    return Default(
        kernel=kernel,
        bits=bits,
        weight_bits=weight_bits,
        capability=capability,
        rows_per_expert=rows_per_expert,
        config=config(block_m),
    )


@pytest.mark.parametrize(
    ("rows", "experts", "expected"),
    [(0, 4, 1), (63, 4, 1), (64, 4, 16), (1000, 1, 512), (10**9, 8, 4096)],
)
def test_rows_per_expert_are_rounded_down_to_a_bucket(rows, experts, expected):
    assert bucket(rows, experts) == expected


def test_what_was_tuned_for_a_shape_comes_first():
    table = Table(defaults=(default(128),), tuned={SHAPE: config(64)})
    assert table.choose(SHAPE) == config(64)
    assert table.choose(replace(SHAPE, experts=64)) == config(128)


def test_of_the_defaults_the_closest_device_counts_then_the_most_rows():
    table = Table(
        defaults=(
            default(16),
            default(32, rows_per_expert=512),
            default(64, capability=90, rows_per_expert=64),
            default(128, capability=90, rows_per_expert=512),
            default(256, capability=100),
        ),
        tuned={},
    )
    assert table.choose(SHAPE) == config(64)
    assert table.choose(replace(SHAPE, rows_per_expert=1024)) == config(128)
    assert table.choose(replace(SHAPE, rows_per_expert=16)) == config(16)
    assert table.choose(replace(SHAPE, capability=80, rows_per_expert=1024)) == config(32)
    assert table.choose(replace(SHAPE, capability=103)) == config(256)


def test_nothing_that_applies_is_an_error():
    others = (default(16, kernel="down"), default(16, bits=32), default(16, weight_bits=32))
    table = Table(defaults=others, tuned={})
    with pytest.raises(LookupError, match="width=768"):
        table.choose(SHAPE)


def test_the_shipped_table_has_an_answer_for_everything():
    table = shipped_table()
    for kernel in KERNELS:
        for dtype, weight_bits in (("float32", 32), ("bfloat16", 16), ("float16", 32)):
            for capability in (0, 75, 80, 90, 120):
                for rows_per_expert in BUCKETS:
                    found = table.choose(
                        replace(
                            SHAPE,
                            kernel=kernel,
                            dtype=dtype,
                            weight_bits=weight_bits,
                            capability=capability,
                            rows_per_expert=rows_per_expert,
                        )
                    )
                    assert not (found.tma and capability < 90)


def test_a_desktop_device_newer_than_hopper_gets_no_datacenter_tiles():
    """Compute capability 12.0 has 99 KiB of shared memory, as 8.9, where 9.0 has 227."""
    for kernel in KERNELS:
        for rows_per_expert in BUCKETS:
            shape = replace(SHAPE, kernel=kernel, rows_per_expert=rows_per_expert)
            ada, blackwell = (replace(shape, capability=number) for number in (89, 120))
            assert shipped_table().choose(blackwell) == shipped_table().choose(ada)


def test_few_rows_get_small_tiles():
    dtypes = {"dtype": torch.bfloat16, "weight_dtype": torch.bfloat16}
    sizes = {"capability": 90, "width": 1024, "hidden": 2816, **dtypes}
    few = choose_configs(**sizes, experts=32, rows=64, gated=True)
    many = choose_configs(**sizes, experts=32, rows=65536, gated=True)
    assert few.up.block_m == few.down.block_m == few.dhidden.block_m == few.dx.block_m == 16
    assert many.up.block_m == 128


def test_a_table_survives_its_file():
    table = Table(defaults=(default(128), default(16, bits=32)), tuned={SHAPE: config(64)})
    assert parse_table(table.to_json()) == table
    assert parse_table(shipped_table().to_json()) == shipped_table()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("defaults", 0, "kernel"), "sideways", r"defaults\[0\].*sideways"),
        (("defaults", 0, "bits"), 8, r"defaults\[0\].*bits=8"),
        (("defaults", 0, "weight_bits"), 64, r"defaults\[0\].*weight_bits=64"),
        (("defaults", 0, "rows_per_expert"), 100, r"defaults\[0\].*rows_per_expert=100"),
        (("defaults", 0, "config", "block_m"), 48, r"defaults\[0\].*block_m=48"),
        (("defaults", 0, "config", "block_n"), 16, r"defaults\[0\].*block_n=16"),
        (("defaults", 0, "config", "tma"), 1, r"defaults\[0\].*tma=1"),
        (("defaults", 0, "config", "num_stages"), 0, r"defaults\[0\].*num_stages=0"),
        (("defaults", 0, "config", "blocks"), 1, r"defaults\[0\].*blocks"),
        (("tuned", 0, "shape", "dtype"), "float64", r"tuned\[0\].*float64"),
        (("tuned", 0, "note"), "?", r"tuned\[0\].*another key"),
        (("more",), [], "no other"),
    ],
)
def test_a_bad_entry_is_named(path, value, message):
    content = json.loads(Table(defaults=(default(128),), tuned={SHAPE: config(64)}).to_json())
    *way, last = path
    place = content
    for step in way:
        place = place[step]
    place[last] = value
    with pytest.raises(ValueError, match=message):
        parse_table(json.dumps(content))


def test_a_shape_may_come_once():
    content = json.loads(Table(defaults=(), tuned={SHAPE: config(64)}).to_json())
    content["tuned"] *= 2
    with pytest.raises(ValueError, match=r"tuned\[1\].*twice"):
        parse_table(json.dumps(content))
