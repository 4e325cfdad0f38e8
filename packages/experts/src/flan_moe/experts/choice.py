"""Which backend ``"auto"`` is."""

from __future__ import annotations

import importlib.util

import torch

FUSED_DTYPES = (torch.float16, torch.bfloat16)


def choose_backend(device: torch.device, matmul_dtype: torch.dtype) -> str:
    """The backend for a device and the dtype of the matrix products; never by timing.

    ``"triton"`` on a CUDA device of compute capability 8.0 or higher where triton is installed,
    in float16 and bfloat16; ``"grouped"`` everywhere else: in float32 a GPU's own products are
    faster than what Triton makes without TF32, and float64 has no kernels.
    """
    if device.type != "cuda" or matmul_dtype not in FUSED_DTYPES:
        return "grouped"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "grouped"
    return "triton" if importlib.util.find_spec("triton") is not None else "grouped"
