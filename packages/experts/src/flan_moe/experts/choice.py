"""Which backend ``"auto"`` is."""

from __future__ import annotations

from functools import lru_cache
from importlib import metadata

import torch

FUSED_DTYPES = (torch.float16, torch.bfloat16)
LEAST_TRITON = (3, 3)


def choose_backend(device: torch.device, matmul_dtype: torch.dtype) -> str:
    """The backend for a device and the dtype of the matrix products; never by timing.

    ``"triton"`` on a CUDA device of compute capability 8.0 or higher where triton 3.3 or later is
    installed, in float16 and bfloat16; ``"grouped"`` everywhere else. In float32 cuBLAS has the
    better kernels for products without TF32, and float64 has none in Triton.
    """
    if device.type != "cuda" or matmul_dtype not in FUSED_DTYPES:
        return "grouped"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "grouped"
    return "triton" if _has_triton() else "grouped"


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    try:
        version = metadata.version("triton")
    except metadata.PackageNotFoundError:
        return False
    return tuple(map(int, version.split(".")[:2])) >= LEAST_TRITON
