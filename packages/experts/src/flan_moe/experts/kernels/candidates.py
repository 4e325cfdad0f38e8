"""What the tuner tries: configurations that may suit a kernel, a width of operands and a device."""

from __future__ import annotations

from itertools import product

from flan_moe.experts.kernels.config import TileConfig


def candidates(
    kernel: str, *, bits: int, capability: int, rows_per_expert: int
) -> list[TileConfig]:
    """Configurations to measure; some may not fit a device's shared memory.

    Args:
        kernel: one of `config.KERNELS`.
        bits: of an operand, 16 or 32.
        capability: compute capability, as 90 for 9.0.
        rows_per_expert: mean; larger tiles of rows than that are not worth a try.
    """
    if bits == 32:
        shapes = list(product((16, 32, 64, 128), (32, 64, 128), (16, 32)))
    elif kernel in ("dwi", "dwo"):
        shapes = list(product((64, 128, 256), (64, 128, 256), (32, 64)))
    else:
        shapes = list(product((16, 32, 64, 128, 256), (64, 128, 256), (32, 64, 128)))
    found = []
    for m, n, k in shapes:
        if kernel not in ("dwi", "dwo") and m > max(16, 2 * rows_per_expert):
            continue
        if m * n > 128 * 256 or (kernel == "up_gated" and m * n > 128 * 128):
            continue  # two accumulators, or one, of more than half the registers
        num_warps = 8 if m * n >= 128 * 128 or (kernel == "up_gated" and m * n > 64 * 64) else 4
        # Two programs on a multiprocessor: the epilogue of one runs beside the products of another.
        two_fit = m * n <= (128 * 64 if kernel.endswith("_gated") else 128 * 128)
        for num_stages, per_sm in product((3, 4, 5), (1, 2) if two_fit else (1,)):
            found.append(
                TileConfig(
                    block_m=m,
                    block_n=n,
                    block_k=k,
                    num_warps=num_warps,
                    num_stages=num_stages,
                    tma=capability >= 90 and kernel not in ("dwi", "dwo"),
                    programs_per_sm=per_sm,
                )
            )
    return found
