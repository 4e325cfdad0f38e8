"""How the kernels cut their work: tile sizes, one set per kernel."""

from __future__ import annotations

from dataclasses import dataclass, fields

KERNELS = ("up", "up_gated", "down", "dhidden", "dhidden_gated", "dx", "dwi", "dwo")
"""What has a configuration of its own. Of the two with a gated form a pass uses one."""


@dataclass(frozen=True, kw_only=True)
class TileConfig:
    """The tile sizes of one matrix product and how it is compiled.

    Attributes:
        block_m: rows of a tile of the output; for weight gradients, rows of the weight.
        block_n: columns of a tile of the output (of each half, for a gated up-projection), at
            least 32: epilogues take them in two halves.
        block_k: steps of the contraction; for weight gradients, rows (of tokens) per step.
        group_m: row tiles that share the reads of a column of the weight.
        num_warps: warps of a program.
        num_stages: depth of the load pipeline.
        tma: whether weights, and rows that are not gathered, are read through tensor descriptors
            where their strides allow.
        programs_per_sm: programs that run on one multiprocessor at a time.

    Raises:
        ValueError: naming the field, for a block that is no power of two or too small, or another
            number out of its range.
    """

    block_m: int
    block_n: int
    block_k: int
    group_m: int = 8
    num_warps: int = 8
    num_stages: int = 3
    tma: bool = False
    programs_per_sm: int = 1

    def __post_init__(self) -> None:
        _require_power_of_two("block_m", self.block_m, 16, 512)
        _require_power_of_two("block_n", self.block_n, 32, 512)
        _require_power_of_two("block_k", self.block_k, 16, 512)
        _require_power_of_two("num_warps", self.num_warps, 1, 32)
        for name, most in (("group_m", 64), ("num_stages", 8), ("programs_per_sm", 8)):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise ValueError(f"{name}={value!r}: expected an integer in 1..{most}")
        if type(self.tma) is not bool:
            raise ValueError(f"tma={self.tma!r}: expected true or false")


@dataclass(frozen=True, kw_only=True)
class KernelConfigs:
    """A configuration for every kernel of a pass; `table.choose_configs` makes one."""

    up: TileConfig
    down: TileConfig
    dhidden: TileConfig
    dx: TileConfig
    dwi: TileConfig
    dwo: TileConfig

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, TileConfig):
                raise TypeError(f"{field.name}={value!r}: expected a TileConfig")


def _require_power_of_two(name: str, value: object, least: int, most: int) -> None:
    if type(value) is not int or value & (value - 1) or not least <= value <= most:
        raise ValueError(f"{name}={value!r}: expected a power of two in {least}..{most}")
