"""What the host decides at each launch: programs, precision, and how a weight is loaded."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from flan_moe.experts.kernels.config import TileConfig

_INTERPRETER_PROGRAMS = 3
_TMA_ALIGNMENT = 16  # bytes


def programs(pieces: int, device: torch.device, config: TileConfig) -> int:
    """How many programs of a persistent kernel share ``pieces`` of work: no more than fit.

    Tensors on CPU can only mean Triton's interpreter, where a few programs show what many do.
    """
    if device.type == "cuda":
        resident = torch.cuda.get_device_properties(device).multi_processor_count
        resident *= config.programs_per_sm
    else:
        resident = _INTERPRETER_PROGRAMS
    return max(1, min(pieces, resident))


def dot_precision(dtype: torch.dtype) -> str:
    """How float32 operands are multiplied: as torch would, by ``torch.backends.cuda.matmul``."""
    tf32 = dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    return "tf32" if tf32 else "ieee"


def weight_load(w_EKN: Tensor, config: TileConfig) -> str:
    """How `operands.weight_tile` is to read ``w_EKN``: "pointers", "descriptor" or "transposed".

    A descriptor where ``config.tma`` asks for one and memory allows it: one of the two inner axes
    has unit stride, every other stride and the first element are aligned to 16 bytes, and a
    row of the tile is at least 16 bytes. Else pointers, which read any strides.
    """
    if not config.tma:
        return "pointers"
    stride_e, stride_k, stride_n = w_EKN.stride()
    size = w_EKN.element_size()
    if stride_n == 1:
        load, outer, inner_block = "descriptor", stride_k, config.block_n
    elif stride_k == 1:
        load, outer, inner_block = "transposed", stride_n, config.block_k
    else:
        return "pointers"
    aligned = all(
        number % _TMA_ALIGNMENT == 0
        for number in (w_EKN.data_ptr(), stride_e * size, outer * size, inner_block * size)
    )
    # A stride of zero (an expanded stack) is none that a descriptor takes.
    if not aligned or 0 in (stride_e, outer):
        return "pointers"
    triton.set_allocator(_allocate)
    return load


def _allocate(size: int, alignment: int, stream: int | None) -> Tensor:
    """Memory in which a kernel builds its descriptors; torch's alignment is 512 bytes."""
    return torch.empty(size, dtype=torch.int8, device="cuda")
