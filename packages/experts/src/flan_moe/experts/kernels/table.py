"""The choice of tile sizes: a pure function of shapes, dtype and device, from a table in a file.

``configs.json`` holds what applies in general, ``defaults``, and what the tuner measured for
given shapes, ``tuned``. Nothing is measured at run time: the same call always runs the same code,
on every rank and in every recomputation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from importlib.resources import files

import torch

from flan_moe.experts.kernels.config import KERNELS, KernelConfigs, TileConfig

BUCKETS = (1, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Rows per expert are rounded down to one of these."""

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


@dataclass(frozen=True, kw_only=True)
class Default:
    """A configuration for devices from a compute capability on, and rows per expert from some on.

    Attributes:
        kernel: one of `KERNELS`.
        bits: of an operand, 16 or 32.
        weight_bits: of a stored weight, which is converted to an operand, 16 or 32.
        capability: compute capability, as 90 for 9.0; the least that it applies to.
        rows_per_expert: the least that it applies to, one of `BUCKETS`.
        config: the tile sizes.
    """

    kernel: str
    bits: int
    weight_bits: int
    capability: int
    rows_per_expert: int
    config: TileConfig

    def __post_init__(self) -> None:
        _require_one_of("kernel", self.kernel, KERNELS)
        _require_one_of("bits", self.bits, (16, 32))
        _require_one_of("weight_bits", self.weight_bits, (16, 32))
        _require_one_of("rows_per_expert", self.rows_per_expert, BUCKETS)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a tuned configuration holds for, exactly.

    Attributes:
        kernel: one of `KERNELS`.
        dtype: of the operands, as "bfloat16".
        weight_bits: of a stored weight, 16 or 32.
        capability: compute capability, as 90 for 9.0.
        width: D.
        hidden: F.
        experts: E.
        rows_per_expert: one of `BUCKETS`.
    """

    kernel: str
    dtype: str
    weight_bits: int
    capability: int
    width: int
    hidden: int
    experts: int
    rows_per_expert: int

    def __post_init__(self) -> None:
        _require_one_of("kernel", self.kernel, KERNELS)
        _require_one_of("dtype", self.dtype, tuple(DTYPES.values()))
        _require_one_of("weight_bits", self.weight_bits, (16, 32))
        _require_one_of("rows_per_expert", self.rows_per_expert, BUCKETS)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Everything in ``configs.json``.

    Attributes:
        defaults: in no order.
        tuned: by shape.
    """

    defaults: tuple[Default, ...]
    tuned: dict[Shape, TileConfig]

    def choose(self, shape: Shape) -> TileConfig:
        """The tuned configuration of a shape, or else the default that fits it most closely.

        That is, of those that apply, the one of the highest capability, and of these the one of
        the most rows per expert.

        Raises:
            LookupError: naming the shape, if nothing applies.
        """
        if shape in self.tuned:
            return self.tuned[shape]
        bits = 32 if shape.dtype == "float32" else 16
        fitting = [
            default
            for default in self.defaults
            if default.kernel == shape.kernel
            and (default.bits, default.weight_bits) == (bits, shape.weight_bits)
            and default.capability <= shape.capability
            and default.rows_per_expert <= shape.rows_per_expert
        ]
        if not fitting:
            raise LookupError(f"no configuration for {shape}")
        return max(fitting, key=lambda fit: (fit.capability, fit.rows_per_expert)).config

    def to_json(self) -> str:
        """The inverse of `parse_table`: one entry a line."""
        defaults = ",\n".join(f"    {json.dumps(asdict(default))}" for default in self.defaults)
        tuned = ",\n".join(
            f"    {json.dumps({'shape': asdict(shape), 'config': asdict(config)})}"
            for shape, config in self.tuned.items()
        )
        return f'{{\n  "defaults": [\n{defaults}\n  ],\n  "tuned": [\n{tuned}\n  ]\n}}\n'


def parse_table(text: str) -> Table:
    """A table from its JSON.

    Raises:
        ValueError: naming the entry, for a key that is missing or unknown, a value that is out of
            its range, or a shape that comes twice.
    """
    content = json.loads(text)
    if not isinstance(content, dict) or set(content) != {"defaults", "tuned"}:
        raise ValueError("a table has the keys 'defaults' and 'tuned', and no other")
    defaults = []
    for i, entry in enumerate(content["defaults"]):
        with _naming(f"defaults[{i}]"):
            defaults.append(Default(**{**entry, "config": TileConfig(**entry["config"])}))
    tuned: dict[Shape, TileConfig] = {}
    for i, entry in enumerate(content["tuned"]):
        with _naming(f"tuned[{i}]"):
            shape = Shape(**entry["shape"])
            if set(entry) != {"shape", "config"} or shape in tuned:
                raise ValueError(f"{shape} comes twice, or with another key than its config")
            tuned[shape] = TileConfig(**entry["config"])
    return Table(defaults=tuple(defaults), tuned=tuned)


@lru_cache(maxsize=1)
def shipped_table() -> Table:
    """The table of this package, read once."""
    file = files("flan_moe.experts.kernels").joinpath("configs.json")
    return parse_table(file.read_text(encoding="utf-8"))


def bucket(rows: int, experts: int) -> int:
    """The mean rows per expert, rounded down to one of `BUCKETS`, or the least of them."""
    return max((size for size in BUCKETS if size * experts <= rows), default=BUCKETS[0])


def kernel_of(role: str, *, gated: bool) -> str:
    """Which of `KERNELS` fills a field of `KernelConfigs`."""
    return f"{role}_gated" if gated and f"{role}_gated" in KERNELS else role


def choose_configs(
    *,
    capability: int,
    dtype: torch.dtype,
    weight_dtype: torch.dtype,
    width: int,
    hidden: int,
    experts: int,
    rows: int,
    gated: bool,
) -> KernelConfigs:
    """The shipped table's configuration for each kernel of a pass.

    Args:
        capability: compute capability, as 90 for 9.0.
        dtype: of the operands.
        weight_dtype: in which weights are stored; other than ``dtype`` under autocast.
        width: D.
        hidden: F.
        experts: E.
        rows: R, as the host knows it.
        gated: whether the activation is.
    """
    return _choose_configs(
        capability,
        DTYPES[dtype],
        8 * weight_dtype.itemsize,
        width,
        hidden,
        experts,
        bucket(rows, experts),
        gated,
    )


@lru_cache(maxsize=1024)
def _choose_configs(
    capability: int,
    dtype: str,
    weight_bits: int,
    width: int,
    hidden: int,
    experts: int,
    rows_per_expert: int,
    gated: bool,
) -> KernelConfigs:
    chosen = {}
    for role in (field.name for field in fields(KernelConfigs)):
        shape = Shape(
            kernel=kernel_of(role, gated=gated),
            dtype=dtype,
            weight_bits=weight_bits,
            capability=capability,
            width=width,
            hidden=hidden,
            experts=experts,
            rows_per_expert=rows_per_expert,
        )
        chosen[role] = shipped_table().choose(shape)
    return KernelConfigs(**chosen)


@contextmanager
def _naming(place: str) -> Iterator[None]:
    """Say which entry an error is about."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{place}: {error}") from error


def _require_one_of(name: str, value: object, expected: tuple[object, ...]) -> None:
    if value not in expected:
        raise ValueError(f"{name}={value!r}: expected one of {expected}")
