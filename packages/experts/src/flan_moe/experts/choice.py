"""Which backend ``"auto"`` is."""

from __future__ import annotations

from functools import lru_cache
from importlib import metadata

import torch

FUSED_DTYPES = (torch.float16, torch.bfloat16)
LEAST_TRITON = {(8, 0): (3, 3), (10, 0): (3, 9)}
"""From which triton on the kernels are known to compile, by compute capability from some on."""


def choose_backend(device: torch.device, matmul_dtype: torch.dtype) -> str:
    """The backend for a device and the dtype of the matrix products; never by timing.

    ``"triton"`` on a CUDA device of compute capability 8.0 or higher where `LEAST_TRITON` is
    installed, in float16 and bfloat16; ``"grouped"`` everywhere else. In float32 cuBLAS has the
    better kernels for products without TF32, and float64 has none in Triton.
    """
    if device.type != "cuda" or matmul_dtype not in FUSED_DTYPES:
        return "grouped"
    capability = torch.cuda.get_device_capability(device)
    needed = [version for least, version in LEAST_TRITON.items() if capability >= least]
    return "triton" if needed and _triton_version() >= max(needed) else "grouped"


@lru_cache(maxsize=1)
def _triton_version() -> tuple[int, ...]:
    """Major and minor version; (0, 0) where it is not installed."""
    try:
        version = metadata.version("triton")
    except metadata.PackageNotFoundError:
        return (0, 0)
    return tuple(map(int, version.split(".")[:2]))
